"""`distillery-bench render`: write the README's tables and pictures from the newest results.

distillery-bench render            rewrite README.md between its markers, and the pictures in docs
distillery-bench render --check    fail when one of them is not what the newest results say
"""

import os
from pathlib import Path

from pydantic import Field

from benchmarks.errors import BenchmarkError
from benchmarks.markdown import accuracy_section, results_section
from benchmarks.perf_analyzer_markdown import perf_analyzer_section
from benchmarks.picture import draw_results, drawn_from
from benchmarks.results import RESULTS, latest, read_result
from benchmarks.scenarios_markdown import scenarios_section
from benchmarks.sections import Section, Source
from distillery import Command

SECTIONS = (
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
    Section(name="scenarios", kinds=("scenarios",), to_markdown=scenarios_section),
    Section(name="perf-analyzer", kinds=("perf_analyzer",), to_markdown=perf_analyzer_section),
)


class RenderBench(Command):
    """Write the README's tables and pictures from the newest results, where the README has their markers."""

    readme: Path = Field(Path("README.md"), description="has markers such as <!-- results:begin --> and :end")
    pictures: Path = Field(Path("docs"), description="folder of the pictures")
    check: bool = Field(False, description="change nothing, fail when README or a picture are stale")
    results_dir: Path = Field(RESULTS, description="where the results are")

    def run(self) -> None:
        text = self.readme.read_text(encoding="utf-8") if self.readme.is_file() else ""
        wanted = [section for section in SECTIONS if section.markers[0] in text]
        if not wanted:
            markers = ", ".join(section.markers[0] for section in SECTIONS)
            raise BenchmarkError(f"{self.readme} has none of {markers}; put one and its end in")
        rendered, stale = text, []
        for section in wanted:
            paths = self._paths(section)
            sources = {kind: Source(read_result(path), self._link(path)) for kind, path in paths.items()}
            names = " ".join(path.name for path in paths.values())
            picture = self.pictures / section.picture
            link = self._link(picture) if section.picture else ""
            rendered = self._put_in(rendered, section.to_markdown(sources, link), *section.markers)
            if section.draw and drawn_from(picture) != names:
                stale.append(f"{picture} (not of {names})")
            if section.draw and not self.check:
                section.draw(sources, picture, names)
                print(f"wrote {picture} from {names}")
        if not self.check:
            self.readme.write_text(rendered, encoding="utf-8")
            print(f"wrote {self.readme}: {', '.join(section.name for section in wanted)}")
            return
        stale += [f"{self.readme}"] if rendered != text else []
        if stale:
            raise BenchmarkError(
                f"not what the newest results say: {' and '.join(stale)}; run distillery-bench render"
            )

    def _paths(self, section: Section) -> dict[str, Path]:
        """Return the newest result of every kind that the section shows."""
        kinds = (*section.kinds, *section.more_kinds)
        found = {kind: latest(kind, folder=self.results_dir) for kind in kinds}
        for kind in section.kinds:
            if found[kind] is None:
                command = kind.removesuffix("_quick").replace("_", "-")  # the recipe is a flag of `accuracy`
                raise BenchmarkError(
                    f"{self.results_dir} has no {kind} result; run distillery-bench {command}"
                )
        return {kind: path for kind, path in found.items() if path}

    def _link(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.readme.parent)).as_posix()

    def _put_in(self, text: str, section: str, begin: str, end: str) -> str:
        before, _, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not found_end:
            raise BenchmarkError(f"{self.readme} has {begin} but no {end} after it; put it in")
        return f"{before}{begin}\n{section}\n{end}{after}"
