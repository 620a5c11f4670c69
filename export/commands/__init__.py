"""The commands of `distillery-export`: arguments and output."""
