"""Metrics: the series in shared memory, their recorders, and what is read from them."""
