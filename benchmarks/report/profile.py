"""Section `profile`: CPU time of a request by stage."""

from typing import Any

from benchmarks.report.markdown import limits, measured, table
from benchmarks.report.sections import Section, Sources
from benchmarks.systems.profiling import STAGES


def profile_section(sources: Sources, _: str) -> str:
    """Return the Markdown for a result of `distillery-bench profile`: a table for each kind of body."""
    source = sources["profile"]
    rows = source.data["rows"]
    tables = [
        _profile_table(body, [row for row in rows if row["body"] == body]) for body in _values(rows, "body")
    ]
    stages = "; ".join(f"*{stage}*: {what}" for stage, what in STAGES.items())
    return "\n\n".join([*tables, f"Stages: {stages}.", measured("profile", source), limits(source)])


def _profile_table(body: str, rows: list[dict[str, Any]]) -> str:
    columns = [f"`{row['model']}`, {row['case']}" for row in rows]
    lines = [[f"{body}: CPU µs per request", *columns]]
    lines += [[stage, *(f"{row['stages_us'][stage]:.1f}" for row in rows)] for stage in STAGES]
    lines.append(["total", *(f"**{row['cpu_us']:.0f}**" for row in rows)])
    lines.append(["images per run", *(f"{row['images_per_run']:.1f}" for row in rows)])
    lines.append(["requests/s of one process", *(f"{row['requests_per_s']:,.0f}" for row in rows)])
    return table(lines)


def _values(rows: list[dict[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


SECTION = Section(name="profile", kinds=("profile",), to_markdown=profile_section)
