"""Figure of the reproduction: test errors of narrow students against their distillation temperature."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from training.report.figures import COLOURS, save


def temperatures_figure(reproduction: dict[str, Any]) -> Figure:
    """Return a panel per width from the content of `reproduction.json`: means and 95 % intervals over seeds."""
    rows = reproduction["temperatures"]
    widths = list(dict.fromkeys(row["units"] for row in rows))
    figure = Figure(figsize=(4.6 * len(widths), 3.6), layout="constrained")
    for axes, width in zip(figure.subplots(1, len(widths), squeeze=False)[0], widths, strict=True):
        control, *distilled = [row for row in rows if row["units"] == width]
        temperatures = [row["temperature"] for row in distilled]
        axes.axhline(control["mean"], color=COLOURS[0], linestyle="--", label="without a teacher")
        axes.axhspan(*_interval(control), color=COLOURS[0], alpha=0.12, linewidth=0)
        axes.errorbar(
            temperatures,
            [row["mean"] for row in distilled],
            yerr=[row["interval_95"] or 0 for row in distilled],
            color=COLOURS[1],
            marker="o",
            capsize=3,
            label="distilled",
        )
        axes.set(xscale="log", xlabel="temperature", xticks=temperatures, title=f"2 × {width} hidden units")
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(visible=True, alpha=0.3)
    figure.axes[0].set_ylabel(f"errors on {reproduction['test_digits']:,} test digits")
    figure.axes[0].legend()
    return figure


def draw_temperatures(path: Path, reproduction: dict[str, Any]) -> None:
    """Write `temperatures_figure` to `path`."""
    save(temperatures_figure(reproduction), path)


def _interval(row: dict[str, Any]) -> tuple[float, float]:
    half = row["interval_95"] or 0
    return row["mean"] - half, row["mean"] + half
