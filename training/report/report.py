"""All that is known of a run's models, in the folder of each: `report.json`, and `MODEL_CARD.md` made from it.

    distillery-train report --recipe quick

Errors are counted for every seed that was trained; everything else is of the current model, the one that
`runs/<recipe>/<model>` names. `headline` in `report.json` is what a model repository shows of it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from training.evaluation.corruptions import CORRUPTIONS
from training.evaluation.evaluate import CARD_FIELDS, Examination
from training.evaluation.significance import mean_interval, paired_over_seeds
from training.model.checkpoint import load_checkpoint
from training.recipe.files import as_toml
from training.recipe.schema import ALONE
from training.report.model_card import model_card
from training.runs.trained import Trained, current_model, over_seeds
from training.storage import write_atomically

REPORT, CARD = "report.json", "MODEL_CARD.md"
DECIMALS = 6


def report_run(
    root: Path, names: Sequence[str], examination: Examination, *, seeds: Sequence[int] | None = None
) -> dict[str, dict[str, Any]]:
    """Write report and card of the models of these names in `root`, and return the reports.

    `seeds`: the trainings to count, all there are if None. Raises `RunError` for a model or a seed that is missing.
    """
    models = {name: current_model(root, name) for name in names}
    reports = {}
    for name, one in models.items():
        compared = [other for other in (one.teacher, models.get(name + ALONE), one) if other]
        trained = {other.name: over_seeds(other, seeds) for other in compared}
        rows = {other.name: _row(other, trained[other.name], examination) for other in compared}
        control = trained.get(name + ALONE)
        saved = _saved(trained[name], control, examination) if control else None
        reports[name] = _report(one, rows, saved, examination)
        write_atomically(one.folder / REPORT, (json.dumps(reports[name], indent=1) + "\n").encode())
        write_atomically(one.folder / CARD, model_card(reports[name]).encode())
    return reports


def _report(
    one: Trained, rows: dict[str, Any], saved: dict[str, Any] | None, examination: Examination
) -> dict[str, Any]:
    evidence, card = examination.evidence(one), load_checkpoint(one.checkpoint).metadata
    return {
        "headline": _headline(rows[one.name], evidence, saved),
        "name": one.name,
        "facts": {field: card[field] for field in (*CARD_FIELDS, "threads") if field in card},
        "settings": one.model.model_dump(),
        "recipe_toml": as_toml(_chain(one)),
        "models": rows,
        "saved_by_distillation": saved,
        "corruptions": {name: {"amounts": c.amounts, "unit": c.unit} for name, c in CORRUPTIONS.items()},
        "evidence": evidence,
    }


def _row(one: Trained, trained: Mapping[int, Trained], examination: Examination) -> dict[str, Any]:
    """What tables show of a model beside its relatives."""
    evidence = examination.evidence(one)
    errors = [examination.errors(other)["errors"] for other in trained.values()]
    centre, spread = mean_interval(errors)
    corrupted = [count for counts in evidence["robustness"].values() for count in counts]
    return {
        "architecture": str(one.model.architecture),
        "parameters": load_checkpoint(one.checkpoint).metadata["parameters"],
        "seed": one.seed,
        "errors": evidence["errors"],
        "accuracy": evidence["accuracy"],
        "errors_over_seeds": {
            "seeds": list(trained),
            "values": errors,
            "mean": centre,
            "interval_95": spread,
        },
        "fidelity": evidence["fidelity"],
        "robustness": evidence["robustness"],
        "corrupted_accuracy": 1 - mean(corrupted) / evidence["robustness_digits"],
    }


def _saved(
    students: Mapping[int, Trained], controls: Mapping[int, Trained], examination: Examination
) -> dict[str, Any]:
    """Errors of the control less errors of the student, over the seeds that both were trained with."""
    seeds = sorted(students.keys() & controls.keys())
    pairs = [(_wrong(controls[seed], examination), _wrong(students[seed], examination)) for seed in seeds]
    return {"of_seeds": seeds, **paired_over_seeds(pairs)}


def _wrong(one: Trained, examination: Examination) -> torch.Tensor:
    """`bool [N]`: the test digits that the model gets wrong."""
    scored = examination.errors(one)
    wrong = torch.zeros(sum(map(sum, scored["confusion"])), dtype=torch.bool)
    wrong[[mistake["index"] for mistake in scored["mistakes"]]] = True
    return wrong


def _headline(
    row: dict[str, Any], evidence: dict[str, Any], saved: dict[str, Any] | None
) -> dict[str, float]:
    seeds, calibration, fidelity = row["errors_over_seeds"], evidence["calibration"], evidence["fidelity"]
    figures = {
        "test_errors": evidence["errors"],
        "test_accuracy": evidence["accuracy"],
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
    return {name: round(value, DECIMALS) for name, value in figures.items() if value is not None}


def _chain(one: Trained) -> dict[str, Any]:
    """The sections of a recipe that trains this model and those it comes from, and no control."""
    chain: dict[str, Any] = {}
    if teacher := one.teacher:
        chain |= _chain(teacher)
        return chain | {one.name: one.model.model_copy(update={"control": False})}
    return chain | {one.name.removesuffix(ALONE): one.model}  # a control is its student without a teacher
