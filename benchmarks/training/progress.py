"""Progress of a long measurement, on standard error: standard output is for results."""

from rich.console import Console


def print_progress(text: str) -> None:
    """Print one line."""
    Console(stderr=True).print(text, style="dim")
