"""From decoded images to predictions: the LitAPI hooks, batching, executors, admission, metrics."""
