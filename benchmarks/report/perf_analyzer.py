"""A result of `distillery-bench perf-analyzer` as a section of the documentation."""

from typing import Any

from benchmarks.report import markdown
from benchmarks.report.sections import Sources

STAGES = {
    "queue_us": "queue",
    "compute_input_us": "input",
    "compute_infer_us": "infer",
    "compute_output_us": "output",
    "overhead_us": "overhead",
}
"""Stages of a request in the server's report, and their column headings."""


def perf_analyzer_section(sources: Sources, _: str) -> str:
    """Return the Markdown: a line per case and model."""
    source = sources["perf_analyzer"]
    header = ["images per request, concurrent requests, model", "images/s", "p50 / p99", "images per run"]
    lines = [[*header, *STAGES.values()], *map(_cells, source.data["rows"])]
    note = (
        "Binary tensors over HTTP. Left: measured by Triton's client. Right: the server's means per request, from its "
        "`/stats`: queue wait, decoding, the model's run, encoding, and the time outside of these, such as the wait "
        "for the event loop after a run that answered several requests."
    )
    return "\n\n".join(
        [markdown.table(lines), note, markdown.measured("perf_analyzer", source), markdown.limits(source)]
    )


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['batch']}, {row['concurrency']}, `{row['model']}`",
        f"{row['images_per_s']:,.0f}",
        f"{row['p50_us'] / 1000:.2f} / {row['p99_us'] / 1000:.2f} ms",
        f"{row['images_per_run']:.1f}",
        *(f"{row[stage]:,.0f} µs" for stage in STAGES),
    ]
