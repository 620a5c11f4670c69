"""`distillery-bench render`: write the tables and figures of README and docs from the newest results."""

import io
import os
from pathlib import Path
from typing import Annotated

from PIL import Image
from pydantic import Field

from benchmarks.errors import BenchmarkError
from benchmarks.report.figures import style
from benchmarks.report.markdown import Source, Sources, fill
from benchmarks.report.sections import SECTIONS, Section
from benchmarks.results.files import RESULTS, latest, read_result
from distillery import Command, Metavar
from distillery.files import write_atomically

COMMANDS = {
    "reproduction": "distillery-train reproduce && distillery-bench record --recipe paper",
    "evidence": "distillery-train report --recipe best && distillery-bench record --recipe best",
}
"""Commands that make a result and are not named after its kind."""
SOURCE_KEY = "Source"
"""A key that the PNG specification defines: here the names of the results that a figure shows."""


class Render(Command):
    """Update the tables and figures of README and docs from the newest results.

    A section stands between markers such as <!-- results:begin --> and <!-- results:end -->.
    """

    examples = ("distillery-bench render", "distillery-bench render --check")

    documents: list[Path] = Field(
        [
            Path("README.md"),
            Path("docs/advise.md"),
            Path("docs/benchmarks.md"),
            Path("docs/cascade.md"),
            Path("docs/distillation.md"),
            Path("docs/feedback.md"),
            Path("docs/paper.md"),
            Path("docs/performance.md"),
            Path("docs/pictures.md"),
            Path("docs/releases.md"),
            Path("docs/scaling.md"),
            Path("docs/scoring.md"),
            Path("docs/training.md"),
        ],
        description="documents with markers",
    )
    figures: Annotated[Path, Metavar("DIR")] = Field(Path("docs"), description="folder of the figures")
    check: bool = Field(False, description="change nothing; fail when a document or a figure is out of date")
    results_dir: Path = Field(RESULTS, description="folder of the result files")

    def run(self) -> None:
        stale = [one for document in self.documents for one in self._render(document)]
        if stale:
            raise BenchmarkError(
                f"not up to date with the newest results: {' and '.join(stale)}; run distillery-bench render"
            )

    def _render(self, document: Path) -> list[str]:
        """Write one document and its figures; with --check return those that are out of date instead."""
        text = document.read_text(encoding="utf-8") if document.is_file() else ""
        sections = [section for section in SECTIONS if section.markers[0] in text]
        if not sections:
            markers = ", ".join(section.markers[0] for section in SECTIONS)
            raise BenchmarkError(f"{document} has none of the markers {markers}; add one and its end")
        rendered, stale = text, []
        for section in sections:
            paths = self._paths(section)
            sources = {kind: Source(read_result(path), _link(document, path)) for kind, path in paths.items()}
            names = " ".join(path.name for path in paths.values())
            figure = self.figures / section.figure
            link = _link(document, figure) if section.figure else ""
            rendered = _replace(document, rendered, fill(section.name, sources, link), section.markers)
            if section.draw and not self.check:
                _draw(section, sources, figure, names)
                print(f"wrote {figure} from {names}")
            if section.draw and _drawn_from(figure) != names:
                stale.append(f"{figure} (not of {names})")
        if not self.check:
            write_atomically(document, rendered.encode())
            print(f"wrote {document}: {', '.join(section.name for section in sections)}")
            return []
        return [*stale, *([str(document)] if rendered != text else [])]

    def _paths(self, section: Section) -> dict[str, Path]:
        """Return the newest result of every kind that the section shows."""
        kinds = (*section.kinds, *section.optional_kinds)
        found = {kind: latest(kind, folder=self.results_dir) for kind in kinds}
        for kind in section.kinds:
            if found[kind] is None:
                name = kind.replace("accuracy_", "accuracy --recipe ").replace("_", "-")
                command = COMMANDS.get(kind, f"distillery-bench {name}")
                raise BenchmarkError(f"{self.results_dir} has no {kind} result; run {command}")
        return {kind: path for kind, path in found.items() if path}


def _draw(section: Section, sources: Sources, path: Path, names: str) -> None:
    """Write a section's figure with the `names` of its results inside, and its further files."""
    with style():
        if section.draw:
            content = io.BytesIO()
            section.draw(sources).savefig(content, format="png", dpi=150, metadata={SOURCE_KEY: names})
            write_atomically(path, content.getvalue())
    for name, file in (section.files(sources) if section.files else {}).items():
        write_atomically(path.parent / name, file)


def _drawn_from(path: Path) -> str | None:
    """Return the names of the results that a figure shows; None where there is no such figure."""
    if not path.is_file():
        return None
    with Image.open(path, formats=["PNG"]) as image:
        return image.info.get(SOURCE_KEY)


def _link(document: Path, path: Path) -> str:
    return Path(os.path.relpath(path, document.parent)).as_posix()


def _replace(document: Path, text: str, section: str, markers: tuple[str, str]) -> str:
    begin, end = markers
    before, _, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_end:
        raise BenchmarkError(f"{document} has {begin} but no {end} after it; add it")
    return f"{before}{begin}\n{section}\n{end}{after}"
