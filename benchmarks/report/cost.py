"""What a request costs, and what the service takes at rest, as sections of docs/performance.md."""

from typing import Any

from benchmarks.report import markdown
from benchmarks.report.sections import Sources
from benchmarks.systems.profiling import STAGES


def profile_section(sources: Sources, _: str) -> str:
    """Return the Markdown for a result of `distillery-bench profile`: a table for each kind of body."""
    source = sources["profile"]
    rows = source.data["rows"]
    tables = [
        _profile_table(body, [row for row in rows if row["body"] == body]) for body in _values(rows, "body")
    ]
    stages = "; ".join(f"*{stage}*: {what}" for stage, what in STAGES.items())
    return "\n\n".join(
        [*tables, f"Stages: {stages}.", markdown.measured("profile", source), markdown.limits(source)]
    )


def footprint_section(sources: Sources, _: str) -> str:
    """Return the Markdown for a result of `distillery-bench footprint`: a row for each executor."""
    source = sources["footprint"]
    header = [
        "executor",
        "start to ready",
        "memory of an API process",
        "of everything",
        "idle CPU of everything",
    ]
    lines = [
        header,
        *(
            [
                row["executor"],
                f"{row['start_to_ready_s']:.2f} s",
                f"{row['pss_per_api_process_mib']:.0f} MiB",
                f"{row['pss_of_everything_mib']:.0f} MiB",
                f"{row['idle_cpu_of_a_core']:.2%} of a core",
            ]
            for row in source.data["rows"]
        ),
    ]
    note = (
        f"{len(source.data['models'])} models, {source.data['rows'][0]['api_processes']} API processes; memory is the "
        "proportional set size, in which a page shared by several processes counts in parts."
    )
    return "\n\n".join([markdown.table(lines), note, markdown.measured("footprint", source)])


def _profile_table(body: str, rows: list[dict[str, Any]]) -> str:
    columns = [f"`{row['model']}`, {row['case']}" for row in rows]
    lines = [[f"{body}: CPU µs of a request", *columns]]
    lines += [[stage, *(f"{row['stages_us'][stage]:.1f}" for row in rows)] for stage in STAGES]
    lines.append(["together", *(f"**{row['cpu_us']:.0f}**" for row in rows)])
    lines.append(["images a run", *(f"{row['images_per_run']:.1f}" for row in rows)])
    lines.append(["requests/s of one process", *(f"{row['requests_per_s']:,.0f}" for row in rows)])
    return markdown.table(lines)


def _values(rows: list[dict[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))
