"""Figures of a report: reliability and robustness of all its models."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from training.recipe.recipe import ALONE
from training.report.figures import COLOURS, save

COLUMNS = 4
STATES = {"before": "as it is", "after": "with the temperature"}


def draw_reliability(path: Path, evidence: Mapping[str, Mapping[str, Any]]) -> None:
    """How often each model is right when it is so sure; the larger a dot, the more digits."""
    rows = -(-len(evidence) // COLUMNS)
    columns = min(len(evidence), COLUMNS)
    figure = Figure(figsize=(3.4 * columns, 3.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    for axes, (name, model) in zip(panels, evidence.items(), strict=False):
        axes.plot((0, 1), (0, 1), color="grey", linestyle=":")
        title = name
        for colour, (state, words) in zip(COLOURS, STATES.items(), strict=False):
            calibration = model["calibration"][state]
            bars = [bar for bar in calibration["reliability"] if bar["digits"]]
            digits = sum(bar["digits"] for bar in bars)
            x, y = ([bar[key] for bar in bars] for key in ("confidence", "accuracy"))
            axes.plot(x, y, color=colour, linewidth=1, alpha=0.6)
            sizes = [8 + 150 * (bar["digits"] / digits) ** 0.5 for bar in bars]
            axes.scatter(x, y, sizes, color=colour, alpha=0.6, label=words)
            title += f"\nECE {calibration['ece']:.2%} {words}"
        axes.set_title(title, fontsize=9)
        axes.grid(visible=True, alpha=0.3)
    for axes in panels:
        axes.set_axis_off()
    figure.axes[0].legend(loc="upper left", fontsize=8, markerscale=0.5)
    figure.supxlabel("probability of the answer")
    figure.supylabel("share of right answers")
    save(figure, path)


def draw_robustness(path: Path, evidence: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `robustness_figure` to `path`."""
    save(robustness_figure(evidence), path)


def robustness_figure(evidence: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Share of wrong answers against the strength of each corruption, and of all; controls are dashed."""
    roles = dict.fromkeys(name.removesuffix(ALONE) for name in evidence)
    colours = dict(zip(roles, cycle(COLOURS), strict=False))
    corruptions = list(next(iter(evidence.values()))["robustness"])
    panels = [*corruptions, "mean of all"]
    figure = Figure(figsize=(3.4 * COLUMNS, 3.1 * (-(-len(panels) // COLUMNS))), layout="constrained")
    grid = figure.subplots(-(-len(panels) // COLUMNS), COLUMNS, squeeze=False, sharex=True, sharey=True).flat
    for axes, corruption in zip(grid, panels, strict=False):
        for name, model in evidence.items():
            table = model["robustness"]
            counts = table.get(corruption) or [mean(at) for at in zip(*table.values(), strict=True)]
            plain = model["errors"] / model["digits"]["test"]
            shares = [plain, *(count / model["robustness_digits"] for count in counts)]
            style = "--" if name.endswith(ALONE) else "-"
            colour = colours[name.removesuffix(ALONE)]
            axes.plot(range(len(shares)), shares, style, color=colour, label=name, linewidth=1.4)
        axes.set_title(corruption, fontsize=10)
        axes.grid(visible=True, alpha=0.3)
        axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper")
    figure.supxlabel("strength; 0: as they are")
    figure.supylabel("wrong answers")
    return figure
