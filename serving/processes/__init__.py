"""Operating-system processes: LitServe's server and workers, and their supervisor."""
