"""The commands of `distillery-train`: arguments, progress and tables."""
