"""The figure of a result of `distillery-bench peers`."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.report.figures import COLOURS, save, style
from benchmarks.report.peers import Row, rows_by_connections
from benchmarks.report.sections import Sources


def draw_peers(sources: Sources, path: Path, names: str) -> None:
    """Draw requests/s and latencies of each system and write the figure to `path`."""
    data = sources["peers"].data
    busy, _ = rows_by_connections(data)
    titles = {fact["server"]: fact["title"] for fact in data["servers"]}
    labels = [titles[row["server"]] for row in busy]
    with style():
        figure = Figure(figsize=(10, 0.9 + 0.38 * len(busy)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _rates(left, busy, {fact["server"] for fact in data["servers"] if not fact["versions"]})
        _latencies(right, busy)
        left.set(yticks=range(len(busy)), yticklabels=labels)
        left.invert_yaxis()
        model = busy[0]["model"]
        figure.suptitle(f"{model}: one 28×28 image as JSON, {busy[0]['connections']} connections")
        save(figure, path, names)


def _rates(axes: Axes, rows: list[Row], ours: set[str]) -> None:
    rates = [row["requests_per_s"] for row in rows]
    rounds = [row["rounds"]["requests_per_s"] for row in rows]
    below = [rate - min(others) for rate, others in zip(rates, rounds, strict=True)]
    above = [max(others) - rate for rate, others in zip(rates, rounds, strict=True)]
    colours = [COLOURS[0] if row["server"] in ours else "0.6" for row in rows]
    axes.barh(range(len(rows)), rates, color=colours, height=0.6)
    axes.errorbar(rates, range(len(rows)), xerr=[below, above], fmt="none", ecolor="0.2", capsize=2)
    for place, others in enumerate(rounds):
        axes.annotate(
            f"{rates[place]:,.0f}", (max(others), place), (4, 0), textcoords="offset points", va="center"
        )
    axes.set(title="Requests/s: median, slowest and fastest round")
    axes.margins(x=0.18)  # room for the labels
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:,g}")


def _latencies(axes: Axes, rows: list[Row]) -> None:
    p50, p99 = [row["p50_ms"] for row in rows], [row["p99_ms"] for row in rows]
    axes.hlines(range(len(rows)), p50, p99, color=COLOURS[1], linewidth=3, alpha=0.5)
    axes.plot(p50, range(len(rows)), "o", color=COLOURS[1])
    axes.plot(p99, range(len(rows)), "|", color=COLOURS[1], markersize=9, markeredgewidth=2)
    for place, value in enumerate(p99):
        axes.annotate(f"{value:.3g}", (value, place), (5, 0), textcoords="offset points", va="center")
    axes.set(title="Latency: p50 (dot) to p99, ms", xscale="log")
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.margins(x=0.2)
    axes.grid(axis="x", alpha=0.3)
