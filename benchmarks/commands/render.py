"""`distillery-bench render`: write the tables and pictures of README and docs from the newest results.

distillery-bench render            rewrite the documents between their markers, and the pictures in docs
distillery-bench render --check    fail when one of them is not what the newest results say
"""

import os
from pathlib import Path

from pydantic import Field

from benchmarks.errors import BenchmarkError
from benchmarks.report.cost import footprint_section, profile_section
from benchmarks.report.evidence import draw_evidence, evidence_section
from benchmarks.report.figures import draw_results, drawn_from
from benchmarks.report.markdown import accuracy_section, results_section
from benchmarks.report.paper import draw_paper, paper_section
from benchmarks.report.pareto import pareto_section, write_pareto
from benchmarks.report.peers import peers_section
from benchmarks.report.peers_figure import draw_peers
from benchmarks.report.perf_analyzer import perf_analyzer_section
from benchmarks.report.scenarios import scenarios_section
from benchmarks.report.sections import Section, Source
from benchmarks.report.summary import summary_section
from benchmarks.results.files import RESULTS, latest, read_result
from distillery import Command

SECTIONS = (
    Section(name="summary", kinds=("accuracy_quick", "session", "http"), to_markdown=summary_section),
    Section(
        name="results",
        kinds=("session", "http"),
        to_markdown=results_section,
        picture="latency.png",
        draw=draw_results,
    ),
    Section(
        name="accuracy",
        kinds=("accuracy_quick",),
        more_kinds=("accuracy_notebook", "training"),
        to_markdown=accuracy_section,
    ),
    Section(
        name="peers",
        kinds=("peers",),
        to_markdown=peers_section,
        picture="peers.png",
        draw=draw_peers,
    ),
    Section(
        name="pareto",
        kinds=("pareto",),
        more_kinds=("accuracy_ensemble",),
        to_markdown=pareto_section,
        picture="pareto.png",
        draw=write_pareto,
    ),
    Section(
        name="evidence",
        kinds=("evidence",),
        to_markdown=evidence_section,
        picture="robustness.png",
        draw=draw_evidence,
    ),
    Section(name="scenarios", kinds=("scenarios",), to_markdown=scenarios_section),
    Section(name="profile", kinds=("profile",), to_markdown=profile_section),
    Section(name="footprint", kinds=("footprint",), to_markdown=footprint_section),
    Section(name="perf-analyzer", kinds=("perf_analyzer",), to_markdown=perf_analyzer_section),
    Section(
        name="paper",
        kinds=("reproduction",),
        to_markdown=paper_section,
        picture="paper.png",
        draw=draw_paper,
    ),
)


class RenderBench(Command):
    """Write the tables and pictures of README and docs from the newest results, where these have their markers."""

    documents: list[Path] = Field(
        [
            Path("README.md"),
            Path("docs/benchmarks.md"),
            Path("docs/distillation.md"),
            Path("docs/paper.md"),
            Path("docs/performance.md"),
        ],
        description="have markers such as <!-- results:begin --> and :end",
    )
    pictures: Path = Field(Path("docs"), description="folder of the pictures")
    check: bool = Field(False, description="change nothing, fail when a document or a picture is stale")
    results_dir: Path = Field(RESULTS, description="where the results are")

    def run(self) -> None:
        stale = [one for document in self.documents for one in self._render(document)]
        if stale:
            raise BenchmarkError(
                f"not what the newest results say: {' and '.join(stale)}; run distillery-bench render"
            )

    def _render(self, document: Path) -> list[str]:
        """Write one document and its pictures; with --check say which of them are stale."""
        text = document.read_text(encoding="utf-8") if document.is_file() else ""
        wanted = [section for section in SECTIONS if section.markers[0] in text]
        if not wanted:
            markers = ", ".join(section.markers[0] for section in SECTIONS)
            raise BenchmarkError(f"{document} has none of {markers}; put one and its end in")
        rendered, stale = text, []
        for section in wanted:
            paths = self._paths(section)
            sources = {kind: Source(read_result(path), _link(document, path)) for kind, path in paths.items()}
            names = " ".join(path.name for path in paths.values())
            picture = self.pictures / section.picture
            link = _link(document, picture) if section.picture else ""
            rendered = _put_in(document, rendered, section.to_markdown(sources, link), section.markers)
            if section.draw and not self.check:
                section.draw(sources, picture, names)
                print(f"wrote {picture} from {names}")
            if section.draw and drawn_from(picture) != names:
                stale.append(f"{picture} (not of {names})")
        if not self.check:
            document.write_text(rendered, encoding="utf-8")
            print(f"wrote {document}: {', '.join(section.name for section in wanted)}")
            return []
        return [*stale, *([str(document)] if rendered != text else [])]

    def _paths(self, section: Section) -> dict[str, Path]:
        """Return the newest result of every kind that the section shows."""
        kinds = (*section.kinds, *section.more_kinds)
        found = {kind: latest(kind, folder=self.results_dir) for kind in kinds}
        for kind in section.kinds:
            if found[kind] is None:
                command = kind.replace("accuracy_", "accuracy --recipe ").replace("_", "-")
                raise BenchmarkError(
                    f"{self.results_dir} has no {kind} result; run distillery-bench {command}"
                )
        return {kind: path for kind, path in found.items() if path}


def _link(document: Path, path: Path) -> str:
    return Path(os.path.relpath(path, document.parent)).as_posix()


def _put_in(document: Path, text: str, section: str, markers: tuple[str, str]) -> str:
    begin, end = markers
    before, _, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_end:
        raise BenchmarkError(f"{document} has {begin} but no {end} after it; put it in")
    return f"{before}{begin}\n{section}\n{end}{after}"
