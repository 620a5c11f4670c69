"""A result of perf_analyzer as people read it: tables for the terminal, and a section of the README."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.report import markdown
from benchmarks.report.sections import Sources

STAGES = {
    "queue_us": "queue",
    "compute_input_us": "input",
    "compute_infer_us": "infer",
    "compute_output_us": "output",
    "overhead_us": "overhead",
}
"""Where the server says a request's time went, and how a column is headed."""


def perf_analyzer_section(sources: Sources, _: str) -> str:
    """Return the Markdown for a result of `distillery-bench perf-analyzer`: a line for each case and model."""
    source = sources["perf_analyzer"]
    header = ["images a request, requests at once, model", "images/s", "p50 / p99", "images a run"]
    lines = [[*header, *STAGES.values()], *map(_cells, source.data["rows"])]
    note = (
        "Binary tensors over HTTP. Left what Triton's client saw; right the server's means of a request, from its own "
        "`/stats`: waiting for the run, decoding, the run, encoding, and what is beside them, such as the wait for a "
        "turn after a run that answered several requests."
    )
    parts = [
        markdown.table(lines),
        note,
        markdown.measured("perf_analyzer", source),
        markdown.limits(source),
    ]
    return "\n\n".join(parts)


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['batch']}, {row['concurrency']}, `{row['model']}`",
        f"{row['images_per_s']:,.0f}",
        f"{row['p50_us'] / 1000:.2f} / {row['p99_us'] / 1000:.2f} ms",
        f"{row['images_per_run']:.1f}",
        *(f"{row[stage]:,.0f} µs" for stage in STAGES),
    ]


def perf_analyzer_tables(rows: list[dict[str, Any]]) -> Iterator[Table]:
    """Lay out the rows of a result: a table for each number of images a request and of requests at once."""
    for (batch, concurrency), group in groupby(rows, key=lambda row: (row["batch"], row["concurrency"])):
        table = Table(
            title=f"{batch} image(s) a request, {concurrency} at once; the server's means in µs",
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=0,
        )
        for name in ("model", "images/s", "p50 ms", "p99 ms", "a run", *STAGES.values()):
            table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
        for row in group:
            table.add_row(
                row["model"],
                f"{row['images_per_s']:,.0f}",
                *(f"{row[name] / 1000:.2f}" for name in ("p50_us", "p99_us")),
                f"{row['images_per_run']:.1f}",
                *(f"{row[stage]:,.0f}" for stage in STAGES),
            )
        yield table
