"""Results of a sweep in `runs/<recipe>/sweep/<student>`: trials.csv, sweep.json, heat_map.png."""

import csv
import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from distillery.files import write_atomically
from training.report.figures import save
from training.sweep.search import Result, pareto_front
from training.sweep.space import Space

if TYPE_CHECKING:
    from optuna import Study

TEMPERATURES, ALPHAS = 6, 5
"""Cells of the heat map."""


def importances(study: "Study") -> dict[str, float]:
    """Return each setting's importance for being among the tenth of trials with fewest validation errors; sum 1.

    PED-ANOVA (Watanabe, Bansal, Hutter 2023, arXiv:2304.10255), Optuna's only method without scikit-learn. Empty for
    fewer than two trials.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances  # noqa: PLC0415
    from optuna.trial import TrialState  # noqa: PLC0415

    if len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])) < 2:
        return {}
    with warnings.catch_warnings():  # it is experimental, and warns of few trials
        warnings.simplefilter("ignore")
        found = get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(), target=lambda trial: trial.values[0]
        )
    return {name: round(share, 4) for name, share in found.items()}


def write_results(
    folder: Path, study: str, results: Sequence[Result], shares: dict[str, float], space: Space
) -> dict[str, Any]:
    """Write the three files and return the content of `sweep.json`."""
    rows = [
        {"trial": result.number, "validation_errors": result.errors, "multiply_adds": result.multiply_adds}
        | result.settings
        for result in results
    ]
    summary: dict[str, Any] = {
        "study": study,
        "trials": len(rows),
        "importances": shares,
        "front": [row for best in pareto_front(results) for row in rows if row["trial"] == best.number],
    }
    table = io.StringIO()
    names = ("trial", "validation_errors", "multiply_adds", *Space.model_fields)
    writer = csv.DictWriter(table, names)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "trials.csv", table.getvalue().encode())
    write_atomically(folder / "sweep.json", (json.dumps(summary, indent=2) + "\n").encode())
    draw_heat_map(folder / "heat_map.png", results, space)
    return summary


def draw_heat_map(path: Path, results: Sequence[Result], space: Space) -> None:
    """Draw the fewest validation errors, and the number of trials, for each cell of temperature and alpha."""
    temperatures = np.geomspace(*space.temperature, TEMPERATURES + 1)
    alphas = np.linspace(*space.alpha, ALPHAS + 1)
    cells: dict[tuple[int, int], list[int]] = {}
    for result in results:
        alpha, temperature = result.settings["alpha"], result.settings["temperature"]
        cell = _cell(alpha, alphas), _cell(temperature, temperatures)
        cells.setdefault(cell, []).append(result.errors)
    fewest = np.full((ALPHAS, TEMPERATURES), np.nan)
    for cell, errors in cells.items():
        fewest[cell] = min(errors)
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    low, high = min(map(min, cells.values())), max(map(min, cells.values()))
    # No cell reaches the darkest colours, so that the numbers stay readable.
    axes.imshow(fewest, cmap="Oranges", vmin=low, vmax=2 * high - low + 1, origin="lower", aspect="auto")
    for (row, column), errors in cells.items():
        axes.text(column, row, f"{min(errors)}\n({len(errors)})", ha="center", va="center", fontsize=8)
    axes.set_xticks(np.arange(TEMPERATURES + 1) - 0.5, [f"{edge:.2g}" for edge in temperatures])
    axes.set_yticks(np.arange(ALPHAS + 1) - 0.5, [f"{edge:.2g}" for edge in alphas])
    axes.set(xlabel="temperature", ylabel="alpha", title="fewest validation errors (number of trials)")
    save(figure, path)


def _cell(value: float, edges: np.ndarray) -> int:
    """Return the index of the cell with `value`, which rounding may have moved past the outer `edges`."""
    return int(np.clip(np.searchsorted(edges, value, side="right") - 1, 0, len(edges) - 2))
