"""The commands of `distillery-bench`, one per file."""
