"""`distillery-bench render`: write the README's result table and picture from the newest results.

distillery-bench render            rewrite README.md between its markers, and docs/latency.png
distillery-bench render --check    fail when either is not what the newest results say
"""

import os
from pathlib import Path

from pydantic import Field

from benchmarks.accuracy import accuracy_kind
from benchmarks.comparison import compare_models
from benchmarks.errors import BenchmarkError
from benchmarks.markdown import accuracy_section, results_section, training_section
from benchmarks.picture import draw, drawn_from
from benchmarks.results import RESULTS, latest, read_result
from distillery import Command

BEGIN = "<!-- results:begin -->"
END = "<!-- results:end -->"
ACCURACY_BEGIN = "<!-- accuracy:begin -->"
ACCURACY_END = "<!-- accuracy:end -->"
RECIPES = ("quick", "notebook")
"""Whose test errors are shown, where they have been counted and the README has the markers for them."""


class RenderBench(Command):
    """Write the README's result table and the latency picture from the newest results."""

    readme: Path = Field(Path("README.md"), description=f"has the markers {BEGIN} and {END}")
    picture: Path = Field(Path("docs/latency.png"), description="latency and throughput")
    check: bool = Field(False, description="change nothing, fail when README or picture are stale")
    results_dir: Path = Field(RESULTS, description="where the results are")

    def run(self) -> None:
        paths = {kind: self._newest(kind) for kind in ("session", "http")}
        results = {kind: read_result(path) for kind, path in paths.items()}
        rows = compare_models(results["session"]["data"], results["http"]["data"])
        section = results_section(
            rows,
            results,
            links={kind: self._link(path) for kind, path in paths.items()},
            picture=self._link(self.picture),
        )
        sources = " ".join(path.name for path in paths.values())
        text = self.readme.read_text(encoding="utf-8") if self.readme.is_file() else ""
        rendered = self._put_in(text, section, BEGIN, END)
        if ACCURACY_BEGIN in rendered:
            rendered = self._put_in(rendered, self._accuracy(), ACCURACY_BEGIN, ACCURACY_END)
        if self.check:
            stale = [str(self.readme)] if rendered != text else []
            stale += [str(self.picture)] if drawn_from(self.picture) != sources else []
            if stale:
                raise BenchmarkError(f"{' and '.join(stale)}: not of {sources}; run distillery-bench render")
            return
        self.readme.write_text(rendered, encoding="utf-8")
        draw(rows, results["session"]["data"], results["http"]["data"], self.picture, sources)
        print(f"wrote {self.readme} and {self.picture} from {sources}")

    def _newest(self, kind: str) -> Path:
        path = latest(kind, folder=self.results_dir)
        if path is None:
            raise BenchmarkError(f"{self.results_dir} has no {kind} result; run distillery-bench {kind}")
        return path

    def _link(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.readme.parent)).as_posix()

    def _accuracy(self) -> str:
        found = [latest(accuracy_kind(recipe), folder=self.results_dir) for recipe in RECIPES]
        paths = [path for path in found if path]
        sections = [accuracy_section([(read_result(path), self._link(path)) for path in paths])]
        if training := latest("training", folder=self.results_dir):
            sections.append(training_section(read_result(training), self._link(training)))
        return "\n\n".join(sections)

    def _put_in(self, text: str, section: str, begin: str, end: str) -> str:
        before, found_begin, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not (found_begin and found_end):
            raise BenchmarkError(f"{self.readme} has no {begin} followed by {end}; put the two lines in")
        return f"{before}{begin}\n{section}\n{end}{after}"
