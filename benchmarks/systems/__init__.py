"""The systems under test: our service and the peers, each in its own processes."""
