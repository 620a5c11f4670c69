"""A generated section of a document: its markers, the results it is made from, its Markdown and its figure."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Source:
    """A result that a section is made from."""

    document: dict[str, Any]
    """As `benchmarks.results.files.read_result` returns it."""
    link: str
    """The file's path relative to the document."""

    @property
    def data(self) -> dict[str, Any]:
        """Measurements; the rest of `document` is machine, versions and commit."""
        return dict(self.document["data"])


Sources = dict[str, Source]
"""The newest results by kind."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """The part of a document between `<!-- name:begin -->` and `<!-- name:end -->`."""

    name: str
    kinds: tuple[str, ...]
    """Required kinds of results."""
    optional_kinds: tuple[str, ...] = ()
    to_markdown: Callable[[Sources, str], str]
    """From the sources and the link to the figure ("" without one)."""
    figure: str = ""
    """File name of the figure, where there is one."""
    draw: Callable[[Sources, Path, str], None] | None = None
    """Write the figure to a path, with the names of its sources inside (`benchmarks.report.figures.save`)."""

    @property
    def markers(self) -> tuple[str, str]:
        """The two lines of the document that enclose the section."""
        return f"<!-- {self.name}:begin -->", f"<!-- {self.name}:end -->"
