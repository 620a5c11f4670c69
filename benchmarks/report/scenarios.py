"""LoadGen's scenarios as people read them: tables for the terminal, and a section of the README."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.loadgen.scenarios import METRICS, Row
from benchmarks.report.markdown import limits, measured, table
from benchmarks.report.sections import Sources

FORMS = {"json": "JSON", "png": "PNG", "binary": "binary tensors"}


def scenarios_section(sources: Sources, _: str) -> str:
    """Return the Markdown for a result of `distillery-bench scenarios`: scenario and system by model."""
    source = sources["scenarios"]
    rows, rules = source.data["rows"], source.data["rules"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    cells = {(row["scenario"], row["system"], row["model"]): _cell(row) for row in rows}
    metrics = {(row["scenario"], row["system"]): row["metric"] for row in rows}
    order = list(METRICS)
    lines = [["scenario", "figure", "system", *(f"`{model}`" for model in models)]]
    for scenario, system in sorted(metrics, key=lambda pair: order.index(pair[0])):
        figures = [cells.get((scenario, system, model), "") for model in models]
        lines.append([scenario, metrics[scenario, system], system, *figures])
    note = (
        "× says how many times better than the teacher; ≥: the generator, not the system, was the limit. The scenarios "
        "are those of MLPerf's LoadGen: SingleStream one image a query, MultiStream 8, one query after another; Server "
        "Poisson arrivals of single images, the highest rate whose p99, counted from the intended time, stays within "
        f"{rules['bound_ms']:g} ms; Offline everything at once. `session` is onnxruntime alone, {rules['threads']} "
        "thread(s) in Server and Offline; the others are asked over HTTP, one image as "
        f"{FORMS[rules['single']]}, 8 and 64 as {FORMS[rules['several']]}."
    )
    return "\n\n".join([table(lines), note, measured("scenarios", source), limits(source)])


def scenarios_tables(rows: list[Row]) -> Iterator[Table]:
    """Lay out the rows of `run_scenario`: a table for each scenario."""
    for scenario in dict.fromkeys(row["scenario"] for row in rows):
        alike = [row for row in rows if row["scenario"] == scenario]
        title = f"{scenario}: {alike[0]['metric']}, {alike[0]['unit']}"
        table = Table(
            title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
        )
        left = ("system", "model")
        for name in (*left, "figure", "× teacher", "p50 ms", "p90 ms", "p99 ms", "queries"):
            table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
        for row in alike:
            table.add_row(
                *(row[name] for name in left),
                figure_of(row),
                f"{row['ratio']:.2f}" if row["ratio"] else "",
                *(f"{row[name]:,.3f}" if name in row else "" for name in ("p50_ms", "p90_ms", "p99_ms")),
                f"{row['queries']:,}" if "queries" in row else "",
            )
        yield table


def figure_of(row: Row) -> str:
    """Return the figure of a row for people; a rate that only the generator limits is a lower bound."""
    if row["figure"] is None:
        return "none"
    at_least = "≥ " if row.get("limited_by") == "generator" else ""
    return at_least + (f"{row['figure']:.3g}" if row["unit"] == "ms" else f"{row['figure']:,.0f}")


def _cell(row: Row) -> str:
    unit = " ms" if row["unit"] == "ms" and row["figure"] is not None else ""
    ratio = row["ratio"]
    times = "" if ratio in (None, 1) else f" (×{ratio:.{0 if ratio >= 10 else 1}f})"
    return figure_of(row) + unit + times
