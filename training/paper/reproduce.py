"""Reproduction of the MNIST section of Hinton, Vinyals and Dean 2015 (arXiv:1503.02531, section 3) over several seeds.

    distillery-train reproduce              five seeds of the recipe `paper`, about half an hour of one core
    distillery-train reproduce --seeds 0

Per seed: the recipe's teacher, its student and the student's control; narrower students at several temperatures;
students whose transfer set lacks classes, before and after bias correction (`training/paper/class_bias.py`). All
choices are made before the test digits are read, once, for all models; the exception is the bias correction `test`,
the paper's own, which bounds what any single offset can reach.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import distillery
from distillery.files import write_atomically
from training.data.mnist import Digits
from training.loop.device import Device
from training.loop.trainer import Observer, predict
from training.model.checkpoint import load_checkpoint
from training.model.network import CLASSES
from training.paper.transfer_sets import TRANSFER_SETS, correct, find_offsets, over_seeds
from training.recipe.schema import ALONE, Recipe
from training.runs.folder import ModelRun
from training.runs.pipeline import DataSet, train_recipe

REPRODUCTION = "reproduction.json"
NARROW = "narrow"


def plan(recipe: Recipe, seed: int, *, units: Sequence[int], temperatures: Sequence[float]) -> Recipe:
    """Return the models to train with one seed: the recipe's teacher and student, and those derived from them.

    Narrower students have the training settings of the recipe's `narrow` (of its student if there is none) and the
    student's distillation at each of the temperatures. Raises `DistilleryError` without such a student.
    """
    student = recipe.models.get("student")
    if student is None or student.distillation is None:
        raise distillery.DistilleryError(
            f"the recipe {recipe.name} needs a model `student` with a distillation, such as paper and quick have"
        )
    models = {name: model for name, model in recipe.models.items() if name != NARROW}
    template = recipe.models.get(NARROW, student).model_copy(update={"control": False})
    for width in units:
        narrow = template.model_copy(update={"hidden": [width] * len(template.hidden)})
        models[narrow_name(width)] = narrow.without_teacher
        for temperature in temperatures:
            distillation = student.distillation.model_copy(update={"temperature": temperature})
            model = narrow.model_copy(update={"distillation": distillation})
            models[narrow_name(width, temperature)] = model
    for name, transfer in TRANSFER_SETS.items():
        models[name] = student.model_copy(update={"leave_out": transfer.leave_out, "control": False})
    return Recipe(name=recipe.name, seed=seed, models=models)


def narrow_name(width: int, temperature: float | None = None) -> str:
    """Return a valid model name for a narrow student: `units30t2p5` at temperature 2.5, `units30` for its control."""
    return f"units{width}" + ("" if temperature is None else f"t{temperature:g}".replace(".", "p"))


def reproduce(
    recipe: Recipe,
    data: DataSet,
    read_test: Callable[[], Digits],
    *,
    seeds: Sequence[int],
    units: Sequence[int],
    temperatures: Sequence[float],
    device: Device,
    root: Path,
    observer: Observer,
) -> dict[str, Any]:
    """Train all models in `root`, evaluate them, write and return `reproduction.json`.

    The test digits are read only if a model has changed since. Raises `DistilleryError`.
    """
    trained: dict[int, dict[str, ModelRun]] = {}
    for seed in seeds:
        planned = plan(recipe, seed, units=units, temperatures=temperatures)
        trained[seed] = train_recipe(planned, data, device=device, root=root, observer=observer)
    cache_keys = {
        str(seed): {name: run.cache_key for name, run in runs.items()} for seed, runs in trained.items()
    }
    kept = root / REPRODUCTION
    if kept.exists():
        known: dict[str, Any] = json.loads(kept.read_bytes())
        if known["cache_keys"] == cache_keys:
            return known
    prior = torch.bincount(data.training.labels, minlength=CLASSES) / len(data.training)
    validated = [_logits(runs, data.validation.images, TRANSFER_SETS) for runs in trained.values()]
    offsets = {
        name: [find_offsets(of[name], data.validation.labels, prior, moved) for of in validated]
        for name, (_, moved) in TRANSFER_SETS.items()
    }
    test = read_test()  # from here on nothing is chosen except the correction `test`
    logits = [_logits(runs, test.images, runs) for runs in trained.values()]
    names = ("teacher", f"student{ALONE}", "student")
    result = {
        "recipe": recipe.name,
        "settings": {name: model.model_dump(mode="json") for name, model in recipe.models.items()},
        "seeds": list(seeds),
        "test_digits": len(test),
        "digits_of_class": torch.bincount(test.labels, minlength=CLASSES).tolist(),
        "models": {name: _errors(name, logits, test.labels) for name in names},
        "temperatures": [
            {"units": width, "temperature": temperature}
            | _errors(narrow_name(width, temperature), logits, test.labels)
            for width in units
            for temperature in (None, *temperatures)
        ],
        "transfer_sets": {
            name: transfer._asdict()
            | {
                "corrections": correct(
                    [of[name] for of in logits], offsets[name], test.labels, transfer.moved
                )
            }
            for name, transfer in TRANSFER_SETS.items()
        },
        "cache_keys": cache_keys,
    }
    write_atomically(kept, (json.dumps(result) + "\n").encode())
    return result


def _logits(runs: dict[str, ModelRun], images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    return {name: predict(load_checkpoint(runs[name].checkpoint).network, images) for name in names}


def _errors(name: str, logits: Sequence[dict[str, Tensor]], labels: Tensor) -> dict[str, Any]:
    return over_seeds([int((of[name].argmax(dim=1) != labels).sum()) for of in logits])
