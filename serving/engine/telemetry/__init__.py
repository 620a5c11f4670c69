"""Request ids, the access log and traces: data on single requests; `serving.engine.metrics` counts them."""
