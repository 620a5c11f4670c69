"""Load generators, workloads and latency summaries."""
