"""From decoded images to predictions: LitAPI hooks, batching, executors, admission control, metrics."""
