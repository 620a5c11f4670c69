"""The systems measured: our service and the peers, each in processes of its own."""
