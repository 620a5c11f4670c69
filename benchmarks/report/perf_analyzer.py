"""Section `perf-analyzer`, and its tables for the terminal."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.load.sessions import REFERENCE
from benchmarks.report.markdown import limits, measured, table, with_ratio
from benchmarks.report.sections import Section, Sources
from benchmarks.results.ratio import LEGEND, Ratio

STAGES = {
    "queue_us": "queue",
    "compute_input_us": "input",
    "compute_infer_us": "infer",
    "compute_output_us": "output",
    "overhead_us": "overhead",
}
"""Stages of a request by the server's statistics, and their column headings."""


def perf_analyzer_section(sources: Sources, _: str) -> str:
    """Return the Markdown for a result of `distillery-bench perf-analyzer`: a line for each case and model."""
    source = sources["perf_analyzer"]
    header = ["images per request, concurrency, model", "images/s", "p50 / p99", "images per run"]
    rows = source.data["rows"]
    lines = [[*header, *STAGES.values()], *(_cells(row, speedup_of(row, rows)) for row in rows)]
    note = (
        f"{LEGEND}. Binary tensors over HTTP. On the left the client's figures; on the right the server's means per "
        "request, from its `/stats`: queue, decoding, model, encoding, and overhead, such as the wait after a run that "
        "answered several requests."
    )
    return "\n\n".join([table(lines), note, measured("perf_analyzer", source), limits(source)])


def speedup_of(row: dict[str, Any], rows: list[dict[str, Any]]) -> Ratio | None:
    """Return the improvement of a row's images/s over the teacher's, None for the teacher and without one."""
    alike = [other for other in rows if other["model"] == REFERENCE and _case(other) == _case(row)]
    if not alike or row["model"] == REFERENCE:
        return None
    ours, theirs = ([one["images_per_s"] for one in each["rounds"]] for each in (row, alike[0]))
    return Ratio.within_rounds(ours, theirs)


def _case(row: dict[str, Any]) -> tuple[int, int]:
    return row["batch"], row["concurrency"]


def _cells(row: dict[str, Any], speedup: Ratio | None) -> list[str]:
    return [
        f"{row['batch']}, {row['concurrency']}, `{row['model']}`",
        with_ratio(f"{row['images_per_s']:,.0f}", speedup),
        f"{row['p50_us'] / 1000:.2f} / {row['p99_us'] / 1000:.2f} ms",
        f"{row['images_per_run']:.1f}",
        *(f"{row[stage]:,.0f} µs" for stage in STAGES),
    ]


def perf_analyzer_tables(rows: list[dict[str, Any]]) -> Iterator[Table]:
    """Lay out the rows of a result: a table for each number of images per request and concurrency."""
    for (batch, concurrency), group in groupby(rows, key=_case):
        laid_out = Table(
            title=f"images per request {batch}, concurrency {concurrency}; the server's means in µs",
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=0,
        )
        for name in ("model", "images/s", "× teacher", "p50 ms", *STAGES.values()):
            laid_out.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
        for row in group:
            speedup = speedup_of(row, rows)
            laid_out.add_row(
                row["model"],
                f"{row['images_per_s']:,.0f}",
                speedup.short if speedup else "",
                f"{row['p50_us'] / 1000:.2f}",
                *(f"{row[stage]:,.0f}" for stage in STAGES),
            )
        yield laid_out


SECTION = Section(name="perf-analyzer", kinds=("perf_analyzer",), to_markdown=perf_analyzer_section)
