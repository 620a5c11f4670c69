"""The operating-system processes: LitServe's server and workers, and the supervisor above them."""
