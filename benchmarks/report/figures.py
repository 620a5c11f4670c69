"""Figures of the documents: models in a session and over HTTP, serving systems, errors against latency and size."""

import csv
import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from benchmarks.report.markdown import Sources
from benchmarks.report.rows import Row, compare_models, pareto_rows, rows_by_connections, select
from benchmarks.results.models import INT8
from training.paper.figure import temperatures_figure
from training.recipe.schema import ALONE
from training.report.figures import robustness_figure

COLOURS = ("#0072b2", "#e69f00", "#009e73")
"""Okabe and Ito's, safe for colour-blind readers."""
LATENCY = "Latency: p50 (dot) to p99, ms"
CSV_FIELDS = (
    *("model", "architecture", "precision", "distilled", "parameters", "size_bytes", "mean", "interval_95"),
    *("p50_us_batch1", "p50_us_batch64", "speedup_batch1", "speedup_batch64"),
)


def style() -> AbstractContextManager[None]:
    """Return a context in which figures are drawn in the style of the documents."""
    return mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def models_figure(sources: Sources) -> Figure:
    """Draw latency and throughput of each model, from a session result and an HTTP result."""
    session, http = sources["session"].data, sources["http"].data
    rows = [row for row in compare_models(session, http) if row["timed_as"] == row["model"]]
    most, batch = rows[0]["busy"]["connections"], max(row["batch"] for row in session["rows"])
    full = [select(session["rows"], model=row["model"], batch=batch, threads=1) for row in rows]
    latencies = {
        "session, 1 image": [
            (row["session"]["p50_us"] / 1e3, row["session"]["p99_us"] / 1e3) for row in rows
        ],
        "HTTP, 1 connection": [(row["calm"]["p50_ms"], row["calm"]["p99_ms"]) for row in rows],
        f"HTTP, {most} connections": [(row["busy"]["p50_ms"], row["busy"]["p99_ms"]) for row in rows],
    }
    rates = {
        f"session, {batch} images per run": [row["images_per_s"] for row in full],
        "HTTP, 64 images per request": [row["large"]["images_per_s"] for row in rows],
        "HTTP, 1 image per request": [row["busy"]["images_per_s"] for row in rows],
    }
    figure = Figure(figsize=(10, 0.8 + 0.75 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for offset, colour, (label, spans) in zip((-0.25, 0, 0.25), COLOURS, latencies.items(), strict=True):
        heights = [place + offset for place in range(len(rows))]
        _draw_latencies(left, heights, spans, colour, label)
        _label(left, [p50 for p50, _ in spans], heights, "{:.3g}", -6)
    for offset, colour, (label, values) in zip((-0.25, 0, 0.25), COLOURS, rates.items(), strict=True):
        heights = [place + offset for place in range(len(rows))]
        right.plot(values, heights, "s", color=colour, label=label)
        _label(right, values, heights, "{:,.0f}", -6)
    left.set(title=LATENCY, yticks=range(len(rows)), yticklabels=[row["model"] for row in rows])
    right.set(title="Throughput, images/s", xscale="log")
    for axes in (left, right):
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.margins(x=0.25)  # room for the labels
        axes.grid(axis="x", alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False)
    left.invert_yaxis()
    return figure


def overload_figure(sources: Sources) -> Figure:
    """Draw the goodput of each load, as a share of the capacity, by body."""
    rows = sources["overload"].data["rows"]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    for colour, body in zip(COLOURS, dict.fromkeys(row["body"] for row in rows), strict=False):
        own = [select(rows, body=body, case=case) for case in cases]
        shares = [row["goodput_share"] for row in own]
        below = [row["goodput_share"] - min(row["goodput_shares"]) for row in own]
        above = [max(row["goodput_shares"]) - row["goodput_share"] for row in own]
        axes.errorbar(cases, shares, yerr=[below, above], fmt="o", capsize=3, color=colour, label=body)
    axes.axhline(1, color="0.6", linewidth=0.8)
    axes.set(ylim=(0, None), title="Goodput as a share of the capacity: median and range of the rounds")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    return figure


def autoscaling_figure(sources: Sources) -> Figure:
    """Draw the load, the replicas and the queue wait over time."""
    data = sources["autoscaling"].data
    load, samples = data["load"], data["samples"]
    times = [one["time"] for one in samples]
    figure = Figure(figsize=(10, 5), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    top.plot([one["time"] for one in load], [one["offered_per_s"] for one in load], color="0.3")
    top.axhline(data["capacity_per_s"], color="0.6", linewidth=0.8, linestyle=":")
    top.set(title="Requests/s offered; dotted: capacity of one replica", ylim=(0, None))
    middle.step(times, [one["replicas"] for one in samples], where="post", color=COLOURS[1], label="started")
    middle.step(times, [one["ready"] for one in samples], where="post", color=COLOURS[0], label="ready")
    middle.set(title="Replicas", ylim=(0, None))
    middle.yaxis.set_major_locator(MaxNLocator(integer=True))
    middle.legend(frameon=False)
    waits = [None if one["queue_wait_s"] is None else one["queue_wait_s"] * 1e3 for one in samples]
    bottom.plot(times, waits, color=COLOURS[2])
    bottom.axhline(data["objective_s"] * 1e3, color="0.6", linewidth=0.8, linestyle=":")
    bottom.set(
        title="Mean queue wait, ms; dotted: latency objective",
        xlabel="minutes of the replay",
        yscale="log",
    )
    for axes in (top, middle, bottom):
        axes.grid(alpha=0.3)
    return figure


def peers_figure(sources: Sources) -> Figure:
    """Draw requests/s and latencies of each system at the most connections measured."""
    data = sources["peers"].data
    rows, _ = rows_by_connections(data)
    titles = {system["server"]: system["title"] for system in data["servers"]}
    ours = {system["server"] for system in data["servers"] if not system["versions"]}
    heights = range(len(rows))
    figure = Figure(figsize=(10, 0.9 + 0.38 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)

    rates = [row["requests_per_s"] for row in rows]
    rounds = [row["rounds"]["requests_per_s"] for row in rows]
    below = [rate - min(others) for rate, others in zip(rates, rounds, strict=True)]
    above = [max(others) - rate for rate, others in zip(rates, rounds, strict=True)]
    left.barh(
        heights, rates, color=[COLOURS[0] if row["server"] in ours else "0.6" for row in rows], height=0.6
    )
    left.errorbar(rates, heights, xerr=[below, above], fmt="none", ecolor="0.2", capsize=2)
    for height, rate, others in zip(heights, rates, rounds, strict=True):
        left.annotate(f"{rate:,.0f}", (max(others), height), (4, 0), textcoords="offset points", va="center")
    left.set(
        title="Requests/s: median, slowest and fastest round",
        yticks=heights,
        yticklabels=[titles[row["server"]] for row in rows],
    )
    left.margins(x=0.18)  # room for the labels
    left.set_xlim(left=0)
    left.xaxis.set_major_locator(MaxNLocator(5))
    left.invert_yaxis()

    _draw_latencies(right, heights, [(row["p50_ms"], row["p99_ms"]) for row in rows], COLOURS[1])
    right.plot([row["p99_ms"] for row in rows], heights, "|", color=COLOURS[1], markersize=9, mew=2)
    _label(right, [row["p99_ms"] for row in rows], heights, "{:.3g}", 5)
    right.set(title=LATENCY)
    right.margins(x=0.2)
    right.grid(axis="x", alpha=0.3)
    for axes in (left, right):
        axes.xaxis.set_major_formatter("{x:,g}")
    figure.suptitle(f"{rows[0]['model']}: one 28×28 image as JSON, {rows[0]['connections']} connections")
    return figure


def _draw_latencies(
    axes: Axes, heights: Sequence[float], spans: Sequence[tuple[float, float]], colour: str, label: str = ""
) -> None:
    """Draw a dot at each p50 and a line from there to the p99."""
    p50, p99 = zip(*spans, strict=True)
    axes.hlines(heights, p50, p99, color=colour, linewidth=3, alpha=0.5)
    axes.plot(p50, heights, "o", color=colour, label=label)
    axes.set_xscale("log")


def _label(axes: Axes, values: Sequence[float], heights: Sequence[float], form: str, offset: int) -> None:
    """Write each value next to its mark: `offset` points to the right, or to the left if negative."""
    side = "left" if offset > 0 else "right"
    for value, height in zip(values, heights, strict=True):
        axes.annotate(
            form.format(value),
            (value, height),
            (offset, 0),
            textcoords="offset points",
            ha=side,
            va="center",
        )


def pareto_figure(sources: Sources) -> Figure:
    """Draw errors against latency and file size, with the Pareto front."""
    rows = pareto_rows(sources["pareto"].data)
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_errors(left, rows, "p50_us_batch1", 1, "session, one image, one thread: p50, µs")
    _draw_errors(right, rows, "size_bytes", 1e-3, "file, kB")
    left.set_ylabel("errors of 10,000 test digits")
    right.legend(loc="upper left", frameon=False, fontsize=9)
    return figure


def pareto_csv(sources: Sources) -> dict[str, bytes]:
    """Return the rows of the figure as a CSV file; a ratio is its median."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in pareto_rows(sources["pareto"].data):
        writer.writerow(
            {key: value["median"] if isinstance(value, dict) else value for key, value in row.items()}
        )
    return {"pareto.csv": text.getvalue().encode()}


def _draw_errors(axes: Axes, rows: list[Row], key: str, scale: float, label: str) -> None:
    def points(chosen: list[Row]) -> tuple[list[float], list[float]]:
        return [row[key] * scale for row in chosen], [row["mean"] for row in chosen]

    for distilled, source in ((True, "distilled"), (False, "from the labels alone")):
        colour = COLOURS[0] if distilled else COLOURS[1]
        for precision, marker, fill in (("fp32", "o", colour), ("int8", "s", "white")):
            chosen = [row for row in rows if (row["distilled"], row["precision"]) == (distilled, precision)]
            axes.errorbar(
                *points(chosen),
                yerr=[row["interval_95"] or 0 for row in chosen],
                fmt=marker,
                color=colour,
                markerfacecolor=fill,
                capsize=2,
                label=f"{source}, {precision}",
            )
    by_name = {row["model"]: row for row in rows}
    for name, row in by_name.items():
        if (quantised := by_name.get(name + INT8)) and row[key] > quantised[key]:
            colour = COLOURS[0] if row["distilled"] else COLOURS[1]
            axes.plot(*points([row, quantised]), color=colour, alpha=0.3)
        if row["precision"] == "fp32" and not name.endswith(ALONE):  # one name for a network's four points
            place = (row[key] * scale, row["mean"])
            axes.annotate(name, place, (7, -3), textcoords="offset points", fontsize=9)
    axes.step(*points(_front(rows, key)), where="post", color="grey", linestyle=":", label="Pareto front")
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


def paper_figure(sources: Sources) -> Figure:
    """Draw test errors against the temperature."""
    return temperatures_figure(sources["reproduction"].data)


def evidence_figure(sources: Sources) -> Figure:
    """Draw errors against the strength of each corruption."""
    models: dict[str, Any] = sources["evidence"].data["models"]
    return robustness_figure(models)
