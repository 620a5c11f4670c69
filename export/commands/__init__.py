"""The command of `distillery-export`."""
