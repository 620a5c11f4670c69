"""Report of a run: `report.json` in the folder of every model, and `MODEL_CARD.md` rendered from it.

    distillery-train report --recipe quick

Errors are counted over all trained seeds; all other metrics are those of the current model, to which
`runs/<recipe>/<model>` links. A model repository publishes the `headline` of `report.json`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from distillery.files import write_atomically
from training.evaluation.corruptions import CORRUPTIONS
from training.evaluation.evaluate import METADATA_FIELDS, Evaluator
from training.evaluation.metrics import error_mask
from training.evaluation.significance import mean_interval, paired_over_seeds
from training.model.checkpoint import load_checkpoint
from training.recipe.files import to_toml
from training.recipe.schema import ALONE
from training.report.model_card import model_card
from training.runs.trained import Trained, current_model, over_seeds

REPORT, CARD = "report.json", "MODEL_CARD.md"
OPTIONAL_FIELDS = ("request_log", "threads")
"""Of a checkpoint's metadata; not all checkpoints have them."""
DECIMALS = 6


def report_run(
    root: Path, names: Sequence[str], evaluator: Evaluator, *, seeds: Sequence[int] | None = None
) -> dict[str, dict[str, Any]]:
    """Write report and model card of the models `names` of the run in `root`; return the reports by name.

    `seeds`: trainings whose errors are counted, all if None. Raises `RunError` for a missing model or seed.
    """
    models = {name: current_model(root, name) for name in names}
    reports = {}
    for name, model in models.items():
        compared = [other for other in (model.teacher, models.get(name + ALONE), model) if other]
        trained = {other.name: over_seeds(other, seeds) for other in compared}
        rows = {other.name: _row(other, trained[other.name], evaluator) for other in compared}
        control = trained.get(name + ALONE)
        saved = _saved_by_distillation(trained[name], control, evaluator) if control else None
        reports[name] = _report(model, rows, saved, evaluator)
        write_atomically(model.folder / REPORT, (json.dumps(reports[name], indent=1) + "\n").encode())
        write_atomically(model.folder / CARD, model_card(reports[name]).encode())
    return reports


def _report(
    model: Trained, rows: dict[str, Any], saved: dict[str, Any] | None, evaluator: Evaluator
) -> dict[str, Any]:
    metrics, metadata = evaluator.metrics(model), load_checkpoint(model.checkpoint).metadata
    return {
        "headline": _headline(rows[model.name], metrics, saved),
        "name": model.name,
        "metadata": {
            field: metadata[field] for field in (*METADATA_FIELDS, *OPTIONAL_FIELDS) if field in metadata
        },
        "settings": model.model.model_dump(),
        "recipe_toml": to_toml(_recipe_of(model)),
        "models": rows,
        "saved_by_distillation": saved,
        "corruptions": {name: {"amounts": c.amounts, "unit": c.unit} for name, c in CORRUPTIONS.items()},
        "metrics": metrics,
    }


def _row(model: Trained, trained: Mapping[int, Trained], evaluator: Evaluator) -> dict[str, Any]:
    """Return what the model card's tables show of a model; `trained` are its trainings by seed."""
    metrics = evaluator.metrics(model)
    errors = [evaluator.errors(other)["errors"] for other in trained.values()]
    centre, half = mean_interval(errors)
    corrupted = [count for counts in metrics["robustness"].values() for count in counts]
    return {
        "architecture": str(model.model.architecture),
        "parameters": load_checkpoint(model.checkpoint).metadata["parameters"],
        "seed": model.seed,
        "errors": metrics["errors"],
        "accuracy": metrics["accuracy"],
        "errors_over_seeds": {
            "seeds": list(trained),
            "values": errors,
            "mean": centre,
            "interval_95": half,
        },
        "fidelity": metrics["fidelity"],
        "robustness": metrics["robustness"],
        "corrupted_accuracy": 1 - mean(corrupted) / metrics["robustness_digits"],
    }


def _saved_by_distillation(
    students: Mapping[int, Trained], controls: Mapping[int, Trained], evaluator: Evaluator
) -> dict[str, Any]:
    """Return `paired_over_seeds` of controls and students, over the seeds of both."""
    seeds = sorted(students.keys() & controls.keys())
    pairs = [
        (error_mask(evaluator.errors(controls[seed])), error_mask(evaluator.errors(students[seed])))
        for seed in seeds
    ]
    return {"of_seeds": seeds, **paired_over_seeds(pairs)}


def _headline(row: dict[str, Any], metrics: dict[str, Any], saved: dict[str, Any] | None) -> dict[str, float]:
    seeds, calibration, fidelity = row["errors_over_seeds"], metrics["calibration"], metrics["fidelity"]
    headline = {
        "test_errors": metrics["errors"],
        "test_accuracy": metrics["accuracy"],
        "test_errors_seeds": len(seeds["seeds"]),
        "test_errors_mean": seeds["mean"],
        "test_errors_interval_95": seeds["interval_95"],
        "saved_by_distillation": saved and saved["mean"],
        "saved_by_distillation_interval_95": saved and saved["interval_95"],
        "saved_by_distillation_p": saved and saved["digits"]["p"],
        "agreement_with_teacher": fidelity and fidelity["agreement"],
        "kl_to_teacher": fidelity and fidelity["kl"],
        "ece": calibration["before"]["ece"],
        "ece_calibrated": calibration["after"]["ece"],
        "nll": calibration["before"]["nll"],
        "nll_calibrated": calibration["after"]["nll"],
        "corrupted_accuracy": row["corrupted_accuracy"],
    }
    return {name: round(value, DECIMALS) for name, value in headline.items() if value is not None}


def _recipe_of(model: Trained) -> dict[str, Any]:
    """Return the sections of a recipe that trains this model and its teachers, without controls."""
    if teacher := model.teacher:
        return _recipe_of(teacher) | {model.name: model.model.model_copy(update={"control": False})}
    return {model.name.removesuffix(ALONE): model.model}  # a control is its student without a teacher
