"""Results as Markdown: a template for each section of the documents, also printed by the commands.

`templates/NAME.md.jinja` is filled with the results it names (`{{ http.data.rows }}`) and the filters below.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.report.rows import (
    compare_models,
    own_server,
    pareto_rows,
    rows_by_connections,
    uncounted_requests,
    wrong_decisions,
)
from benchmarks.results.ratio import LEGEND, Ratio


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
"""Results by kind."""


def fill(template: str, sources: Sources, figure: str = "") -> str:
    """Return the Markdown of a section; `figure` is the link to its figure, where it has one."""
    file = _ENVIRONMENT.get_template(f"{template}.md.jinja")
    return file.render(sources=sources, **sources, figure=figure).strip()


def measured(source: Source) -> str:
    """Return a list item that links a result and states machine, versions, method, commit and date."""
    result, data = source.document, source.data
    machine, versions = result["machine"], result["versions"]
    tools = ("python", "torch") if result["kind"] == "reproduction" else ("python", "onnxruntime", "litserve")
    parts = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB, {machine['os']}",
        ", ".join(f"{name} {versions[name]}" for name in tools if name in versions),
        *_method(data),
        f"commit {(result['commit'] or 'unknown')[:10]}{' with changes' * result['uncommitted_changes']}",
        result["date"][:10],
    ]
    return f"- [{result['kind']}]({source.link}): {'; '.join(parts)}."


def _method(data: dict[str, Any]) -> list[str]:
    if "generator" in data:
        return [f"medians of {data['rounds']} rounds", f"load by {data['generator']}"]
    return [f"{data['rounds']} rounds pooled"] if "rounds" in data else []


def _ratio(ratio: Ratio | dict[str, Any] | float | None, before: str = "") -> str:
    """Return an improvement after `before`, or nothing without one; a plain number is exact."""
    if ratio is None:
        return ""
    if isinstance(ratio, float):
        return f"{before}{ratio:.1f}×"
    return f"{before}{ratio if isinstance(ratio, Ratio) else Ratio.from_json(ratio)}"


def _share(ratio: dict[str, Any]) -> str:
    """Return a ratio as a percentage with its interval; nothing for a case's ratio to itself."""
    found = Ratio.from_json(ratio)
    if found.low == found.high == 1:
        return ""
    return f"{found.median:.1%} ({found.low:.1%}–{found.high:.1%})"


def _mean(row: dict[str, Any], form: str = ",.1f", *, values: bool = False) -> str:
    """Return a mean over seeds with its 95 % interval, and with its `values`; one value is an integer."""
    if row["interval_95"] is None:
        return format(row["mean"], ".0f" if values else form)
    shown = f" ({', '.join(map(str, row['values']))})" if values else ""
    return f"{row['mean']:{form}} ± {row['interval_95']:,.1f}{shown}"


def _row(cells: list[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def slug(name: str) -> str:
    """Return a name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _versions(servers: list[dict[str, Any]]) -> list[str]:
    return sorted({f"{name} {version}" for server in servers for name, version in server["versions"].items()})


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=False,  # noqa: S701 - Markdown, not HTML
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
    "average": mean,
    "head": lambda cells: f"{_row(cells)}\n| --- |{' --: |' * (len(cells) - 1)}",
    "item_of": lambda index, items: items[index],
    "mean": _mean,
    "number": lambda value, decimals=0: f"{value:,.{decimals}f}",
    "percent": lambda share, decimals: f"{share:.{decimals}%}",
    "ratio": _ratio,
    "row": _row,
    "share": _share,
    "slug": slug,
}
_ENVIRONMENT.globals |= {
    "compare_models": compare_models,
    "improvement": Ratio.within_rounds,
    "legend": LEGEND,
    "limits": lambda source: f"Limits: {'; '.join(source.data['limitations'])}.",
    "measured": measured,
    "own_server": own_server,
    "pareto_rows": pareto_rows,
    "rows_by_connections": rows_by_connections,
    "uncounted_requests": uncounted_requests,
    "versions": _versions,
    "wrong_decisions": wrong_decisions,
}
