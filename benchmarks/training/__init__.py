"""Training measured: throughput cases and the notebook's own loop."""
