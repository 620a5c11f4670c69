"""Section `scenarios`: MLPerf LoadGen's scenarios by system and model."""

from benchmarks.loadgen.scenarios import METRICS, Row
from benchmarks.report.markdown import limits, measured, table, with_ratio
from benchmarks.report.sections import Section, Sources
from benchmarks.results.ratio import LEGEND, Ratio

BODIES = {"json": "JSON", "png": "PNG", "binary": "binary tensors"}


def scenarios_section(sources: Sources, _: str) -> str:
    """Return the Markdown: a line per scenario and system, a column per model."""
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
        f"{LEGEND}; ≥ = limited by the load generator, not by the system. "
        "Scenarios of MLPerf LoadGen: SingleStream, 1 image per query, and MultiStream, 8, send the next query after "
        "the answer to the last; Server sends single images at Poisson arrivals, and its figure is the highest rate "
        f"with p99, counted from the scheduled time, within {rules['bound_ms']:g} ms; Offline issues all images at "
        f"once. `session` is onnxruntime alone, with {rules['threads']} thread(s) in Server and Offline; the others "
        f"are the service over HTTP, 1 image as {BODIES[rules['single']]}, 8 and 64 as {BODIES[rules['several']]}."
    )
    return "\n\n".join([table(lines), note, measured("scenarios", source), limits(source)])


def figure_of(row: Row) -> str:
    """Format a row's figure; a rate limited by the load generator is a lower bound."""
    if row["figure"] is None:
        return "none"
    at_least = "≥ " if row.get("limited_by") == "generator" else ""
    return at_least + (f"{row['figure']:.3g}" if row["unit"] == "ms" else f"{row['figure']:,.0f}")


def _cell(row: Row) -> str:
    unit = " ms" if row["unit"] == "ms" and row["figure"] is not None else ""
    ratio = row["ratio"]
    if isinstance(ratio, float):  # of a result without rounds
        return with_ratio(figure_of(row) + unit, None if ratio == 1 else ratio)
    return with_ratio(figure_of(row) + unit, Ratio.from_json(ratio))


SECTION = Section(name="scenarios", kinds=("scenarios",), to_markdown=scenarios_section)
