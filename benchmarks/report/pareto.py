"""Section `pareto`: what each step gains, as tables, figure and CSV of `distillery-bench pareto`."""

import csv
import io
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report.comparison import Row
from benchmarks.report.figures import COLOURS, save, style
from benchmarks.report.markdown import mean_cell, measured, table
from benchmarks.report.sections import Section, Sources
from benchmarks.results.models import INT8, speed_models
from benchmarks.results.ratio import Ratio
from training.recipe.schema import ALONE

CSV_FIELDS = (
    "model",
    "architecture",
    "precision",
    "distilled",
    "parameters",
    "size_bytes",
    "mean",
    "interval_95",
    "p50_us_batch1",
    "p50_us_batch64",
    "speedup_batch1",
    "speedup_batch64",
)
STEPS = (
    ("800-800 on plain digits", "plain"),
    ("+ augmentation", "student-alone"),
    ("+ distillation", "student"),
    ("+ int8", "student-int8"),
    ("narrower: 256-128, distilled", "fast"),
    ("narrower, without distillation", "fast-alone"),
    ("narrower, distilled, int8", "fast-int8"),
)
"""From the plain student to the smallest: what is added, and the model that has it."""


def pareto_section(sources: Sources, figure: str) -> str:
    """Return the Markdown of a result of `distillery-bench pareto`."""
    source = sources["pareto"]
    rows, floor = sorted(_rows(sources), key=lambda row: row["mean"]), source.data["floor"]
    parts = [
        _models_table(rows),
        f"Errors of the 10,000 test digits, mean ± 95 % interval (Student's t) over the seeds "
        f"{', '.join(map(str, source.data['seeds']))}, of the exported file; × = the latency's improvement over the "
        "teacher in a session, one thread, one image and 64 images per run. Networks that differ in their weights "
        "alone have one latency. The floor, an fp32 network without hidden layers: "
        f"{floor['p50_us_batch1']:.1f} µs, {_speedup(floor['speedup_batch1'])} the teacher's speed.",
        *_ensemble(sources),
        f"![Errors against session latency and file size]({figure})\n\n[The same as CSV](pareto.csv)",
        "**With a teacher against without**, the same network, views, order of digits and budget:",
        _pairs_table(source.data["pairs"]),
        "Saved: errors of the control minus errors of the student. Digits: digits that more seeds got wrong with the "
        "one than with the other, and the p-value of the sign-flip test in which every digit counts once.",
        "**Gain of each step:**",
        _steps_table({row["model"]: row for row in rows}),
        measured("pareto", source),
    ]
    return "\n\n".join(parts)


def _rows(sources: Sources) -> list[Row]:
    """Return the rows of the result; networks of one architecture and precision get one latency, their median."""
    rows: list[Row] = sources["pareto"].data["rows"]
    timed_as = speed_models({row["model"]: row for row in rows})
    figures = [f"{figure}_batch{batch}" for figure in ("p50_us", "speedup") for batch in (1, 64)]
    alike = {name: [row for row in rows if timed_as[row["model"]] == name] for name in set(timed_as.values())}
    return [
        row
        | {figure: _median([other[figure] for other in alike[timed_as[row["model"]]]]) for figure in figures}
        for row in rows
    ]


def _median(values: list[Any]) -> Any:
    """Return the median of old results' numbers; newer ones have one measurement for all networks that are alike."""
    return median(values) if len(values) > 1 and isinstance(values[0], float) else values[0]


def draw_pareto(sources: Sources, path: Path, names: str) -> None:
    """Write the figure to `path`, and a CSV file of the same name."""
    rows = _rows(sources)
    with style():
        figure = Figure(figsize=(11, 4.8), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _scatter(left, rows, "p50_us_batch1", 1, "session, one image, one thread: p50, µs")
        _scatter(right, rows, "size_bytes", 1e-3, "file, kB")
        left.set_ylabel("errors of 10,000 test digits")
        right.legend(loc="upper left", frameon=False, fontsize=9)
        save(figure, path, names)
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _number(value) for key, value in row.items()} for row in rows)
    path.with_suffix(".csv").write_text(text.getvalue(), encoding="utf-8")


def _scatter(axes: Axes, rows: list[Row], key: str, scale: float, label: str) -> None:
    kinds = {(True, "fp32"): "o", (True, "int8"): "s", (False, "fp32"): "o", (False, "int8"): "s"}
    for (distilled, precision), marker in kinds.items():
        chosen = [row for row in rows if (row["distilled"], row["precision"]) == (distilled, precision)]
        axes.errorbar(
            [row[key] * scale for row in chosen],
            [row["mean"] for row in chosen],
            yerr=[row["interval_95"] or 0 for row in chosen],
            fmt=marker,
            color=COLOURS[0] if distilled else COLOURS[1],
            markerfacecolor=(COLOURS[0] if distilled else COLOURS[1]) if precision == "fp32" else "white",
            capsize=2,
            label=f"{'distilled' if distilled else 'from the labels alone'}, {precision}",
        )
    by_name = {row["model"]: row for row in rows}
    for name, row in by_name.items():
        if (quantised := by_name.get(name + INT8)) and row[key] > quantised[key]:
            pair = (row, quantised)
            colour = COLOURS[0] if row["distilled"] else COLOURS[1]
            axes.plot(
                [each[key] * scale for each in pair], [each["mean"] for each in pair], color=colour, alpha=0.3
            )
        if row["precision"] == "fp32" and not name.endswith(ALONE):  # one name for a network's four points
            axes.annotate(
                name, (row[key] * scale, row["mean"]), (7, -3), textcoords="offset points", fontsize=9
            )
    front = _front(rows, key)
    axes.step(
        [row[key] * scale for row in front],
        [row["mean"] for row in front],
        where="post",
        color="grey",
        linestyle=":",
        label="Pareto front",
    )
    axes.set(xscale="log", yscale="log", xlabel=label)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter("{x:,g}")
    axes.grid(alpha=0.3, which="both")


def _front(rows: list[Row], key: str) -> list[Row]:
    """Return the models that no smaller or faster one surpasses, in ascending order of `key`."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (row[key], row["mean"])):
        if not front or row["mean"] < front[-1]["mean"]:
            front.append(row)
    return front


def _ensemble(sources: Sources) -> list[str]:
    """Return a paragraph on the first teacher over seeds of its own, where that was measured."""
    source = sources.get("accuracy_ensemble")
    if source is None:
        return []
    row, seeds = source.data["test_errors"]["cnn"], [seed["seed"] for seed in source.data["seeds"]]
    return [
        "All students above share one `cnn`. Trained for twice as long (recipe `ensemble`), with seeds "
        f"{', '.join(map(str, seeds))}, it has {mean_cell(row['mean'], row['interval_95'])} test errors "
        f"({', '.join(map(str, row['values']))}; [result]({source.link}))."
    ]


def _models_table(rows: list[Row]) -> str:
    header = ["model", "errors", "each seed", "parameters", "file", "p50, one image", "×", "× at 64"]
    lines = [
        [
            f"`{row['model']}` {row['architecture']}",
            mean_cell(row["mean"], row["interval_95"]),
            ", ".join(map(str, row["errors"])),
            f"{row['parameters']:,}",
            f"{row['size_bytes'] / 1e3:,.1f} kB",
            f"{row['p50_us_batch1']:.1f} µs",
            *(_speedup(row[key]) for key in ("speedup_batch1", "speedup_batch64")),
        ]
        for row in rows
    ]
    return table([header, *lines])


def _pairs_table(pairs: dict[str, Any]) -> str:
    lines = [
        [
            "student",
            "saved",
            "each seed",
            "digits: worse alone / worse distilled",
            "p",
            "p of each seed (McNemar)",
        ]
    ]
    for name, pair in pairs.items():
        digits = pair["digits"]
        lines.append(
            [
                f"`{name}`",
                mean_cell(pair["mean"], pair["interval_95"]),
                ", ".join(map(str, pair["saved"])),
                f"{digits['a_errs_more']} / {digits['b_errs_more']}",
                f"{digits['p']:.1g}",
                ", ".join(f"{seed['p']:.1g}" for seed in pair["seeds"]),
            ]
        )
    return table(lines)


def _steps_table(rows: dict[str, Row]) -> str:
    lines = [["", "model", "errors", "p50, one image", "file"]]
    for step, name in STEPS:
        if row := rows.get(name):
            errors = mean_cell(row["mean"], row["interval_95"])
            file = f"{row['size_bytes'] / 1e3:,.0f} kB"
            lines.append([step, f"`{name}`", errors, f"{row['p50_us_batch1']:.1f} µs", file])
    return table(lines)


def _number(value: Any) -> Any:
    """Return the median of a ratio, and any other value as it is."""
    return value["median"] if isinstance(value, dict) else value


def _speedup(kept: float | dict[str, Any] | None) -> str:
    """Return a speedup; results before 2026-11-26 have the median only."""
    if kept is None:
        return ""
    return f"{kept:.1f}×" if isinstance(kept, float) else str(Ratio.from_json(kept))


PARETO = Section(
    name="pareto",
    kinds=("pareto",),
    optional_kinds=("accuracy_ensemble",),
    to_markdown=pareto_section,
    figure="pareto.png",
    draw=draw_pareto,
)
