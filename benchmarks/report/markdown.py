"""Markdown that several sections share: tables, and how a result was measured."""

from typing import Any

from benchmarks.report.sections import Source
from benchmarks.results.ratio import Ratio


def table(lines: list[list[str]]) -> str:
    """Return a Markdown table of a header and rows of cells; all columns but the first are right-aligned."""
    header, *body = lines
    ruler = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ruler, *body))


def measured(kind: str, source: Source) -> str:
    """Return a list item that links a result and states machine, versions, method, commit and date."""
    result, data = source.document, source.data
    machine, versions = result["machine"], result["versions"]
    commit = (result["commit"] or "unknown")[:10] + (" with changes" if result["uncommitted_changes"] else "")
    tools = [name for name in ("python", "onnxruntime", "litserve") if name in versions]
    parts = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB, {machine['os']}",
        ", ".join(f"{name} {versions[name]}" for name in tools),
        *_method(data),
        f"commit {commit}",
        result["date"][:10],
    ]
    return f"- [{kind}]({source.link}): {'; '.join(parts)}."


def _method(data: dict[str, Any]) -> list[str]:
    if "generator" in data:
        return [f"medians of {data['rounds']} rounds", f"load by {data['generator']}"]
    return [f"{data['rounds']} rounds pooled"] if "rounds" in data else []


def limits(source: Source) -> str:
    """Return the limitations that a result lists, as a sentence."""
    return f"Limits: {'; '.join(source.data['limitations'])}."


def with_ratio(text: str, ratio: Ratio | float | None) -> str:
    """Return a figure followed by its improvement over the teacher; a plain number is exact."""
    if ratio is None:
        return text
    return f"{text}, {f'{ratio:.1f}×' if isinstance(ratio, float) else ratio}"


def mean_cell(mean: float, interval: float | None, values: list[int] | None = None) -> str:
    """Return a mean over seeds with its 95 % interval, and the values where they are given; one seed is a number."""
    if interval is None:
        return f"{mean:.0f}" if values else f"{mean:.1f}"
    shown = f" ({', '.join(map(str, values))})" if values else ""
    return f"{mean:.1f} ± {interval:.1f}{shown}"
