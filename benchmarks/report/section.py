"""What a section of the README is: its markers, the results it is made from, its Markdown and its picture."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Source:
    """One result that a section is made from."""

    document: dict[str, Any]
    """As `benchmarks.results.files.read_result` returns it."""
    link: str
    """The way from the README to the file."""

    @property
    def data(self) -> dict[str, Any]:
        """What was measured; the rest of the document says where and with what."""
        return dict(self.document["data"])


Sources = dict[str, Source]
"""The newest results by kind."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """The part of the README between `<!-- name:begin -->` and `<!-- name:end -->`."""

    name: str
    kinds: tuple[str, ...]
    """Kinds of results without which there is nothing to show."""
    more_kinds: tuple[str, ...] = ()
    """Kinds that are shown where they have been measured."""
    to_markdown: Callable[[Sources, str], str]
    """From the sources and the link to the picture ("" without one)."""
    picture: str = ""
    """A file name, where there is a picture."""
    draw: Callable[[Sources, Path, str], None] | None = None
    """Write the picture to a path, with the names of its sources inside (`benchmarks.report.figures.save`)."""

    @property
    def markers(self) -> tuple[str, str]:
        """The two lines of the README that the section stands between."""
        return f"<!-- {self.name}:begin -->", f"<!-- {self.name}:end -->"
