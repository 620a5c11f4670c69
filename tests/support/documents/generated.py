"""A document with generated sections, and the command that renders it."""

from pathlib import Path
from typing import Any

from benchmarks.__main__ import COMMANDS
from benchmarks.report.sections import SECTIONS
from benchmarks.results.files import write_result
from distillery import main

MARKERS = {section.name: section.markers for section in SECTIONS}


def document(folder: Path, *sections: str) -> Path:
    """Write a document with these sections, all of them out of date."""
    path = folder / "README.md"
    old = "\n".join(f"{begin}\nold\n{end}" for begin, end in (MARKERS[name] for name in sections))
    path.write_text(f"# Before\n\n{old}\n\nAfter\n", encoding="utf-8")
    return path


def keep(path: Path, kind: str, data: dict[str, Any]) -> Path:
    """Write a result where `render` looks for it."""
    return write_result(kind, data, folder=path.parent / "benchmarks/results")


def render(path: Path, *flags: str) -> int:
    """Render a document from the results next to it, its figures to `docs`; return the exit status."""
    places = [f"--documents={path}", f"--figures={path.parent / 'docs'}"]
    results = f"--results-dir={path.parent / 'benchmarks/results'}"
    return main("distillery-bench", COMMANDS, arguments=["render", *places, results, *flags])
