"""A recipe from beginning to end: every model in its order, each student after its teacher.

What is trained already is used again; what was interrupted goes on.
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from training.data.mnist import SHA256, Digits, find_mnist, load_training
from training.loop.collective import size
from training.loop.device import Device
from training.loop.distributed import SharedTraining, new_training
from training.loop.soft_targets import SoftTargets
from training.loop.trainer import Job, Observer, Training
from training.model.checkpoint import load_checkpoint
from training.recipe.schema import ALONE, Recipe
from training.runs.folder import ModelRun, fingerprint, only_one

REVISION = 2
"""Raised whenever the same recipe comes to mean other weights, so that older ones are not taken for them."""


def jobs(recipe: Recipe) -> list[Job]:
    """Return the models of `recipe` in the order they are trained; a student's control comes before it."""
    found = []
    teachers = {model.distillation.teacher for model in recipe.models.values() if model.distillation}
    for name, model in recipe.models.items():
        if recipe.teacher_seed is not None and name in teachers and not model.distillation:
            found.append(Job(name, model, recipe.teacher_seed))
            continue
        if model.distillation and model.control:
            found.append(Job(name + ALONE, model.without_teacher, recipe.seed, recipe.teacher_seed))
        found.append(Job(name, model, recipe.seed, recipe.teacher_seed))
    return found


@dataclass(frozen=True)
class DataSet:
    """Digits to learn from and to validate with, and the hashes of the files they come from."""

    training: Digits
    validation: Digits
    sha256: dict[str, str]

    @classmethod
    def of_mnist(cls, data_dir: Path | None) -> "DataSet":
        """Load MNIST's training files. Raises `DatasetError`."""
        return cls(*load_training(find_mnist(data_dir)), SHA256)


def train_recipe(
    recipe: Recipe,
    data: DataSet,
    *,
    device: Device,
    root: Path,
    observer: Observer,
    seeds: Sequence[int] = (),
) -> dict[str, ModelRun]:
    """Train the models of `recipe` into `root` and return them by name; raises `DistilleryError`.

    The models are trained with all other `seeds` too, one seed after another; links name those of the recipe's own.
    """
    with only_one(root):
        current = _runs(recipe, data, device=device, root=root)
        for run in current.values():
            run.drop_stale_link()
        for seed in dict.fromkeys([recipe.seed, *seeds]):
            of_seed = recipe.model_copy(update={"seed": seed})
            runs = _runs(of_seed, data, device=device, root=root)
            for job in jobs(of_seed):
                run, teacher = runs[job.name], _teacher(job, runs)
                train_model(job, run, data, device=device, teacher=teacher, observer=observer)
                if seed == recipe.seed:
                    run.make_current()
    return current


def _runs(recipe: Recipe, data: DataSet, *, device: Device, root: Path) -> dict[str, ModelRun]:
    runs: dict[str, ModelRun] = {}
    for job in jobs(recipe):
        runs[job.name] = model_run(job, data, device=device, root=root, teacher=_teacher(job, runs))
    return runs


def model_run(
    job: Job,
    data: DataSet,
    *,
    device: Device,
    root: Path,
    teacher: ModelRun | None,
) -> ModelRun:
    """Return where `job` is trained, or has been."""
    decisive = _decisive(job, data, device, teacher.fingerprint if teacher else None)
    # A setting left at its default is as if it were not there: a new one changes no older model's identity.
    chosen = job.model.model_dump(exclude={"control"}, exclude_defaults=True)
    return ModelRun(root, job.name, decisive, identity=fingerprint(decisive | {"model": chosen}))


def train_model(
    job: Job,
    run: ModelRun,
    data: DataSet,
    *,
    device: Device,
    teacher: ModelRun | None,
    observer: Observer,
) -> dict[str, Any]:
    """Train one model if it is not trained yet, and return its card; no link names it yet."""
    with only_one(run.folder, wait=True):  # a sweep may be at the same one
        if run.finished:
            card = load_checkpoint(run.checkpoint).card
            observer.reused(job, card)
        else:
            training = _begin(job, data, device=device, teacher=teacher)
            card = _train(job, run, data, training, observer=observer)
            observer.finished(job, card)
        run.drop_state()
    return card


def _teacher(job: Job, runs: dict[str, ModelRun]) -> ModelRun | None:
    return runs[job.distillation.teacher] if job.distillation else None


def _begin(job: Job, data: DataSet, *, device: Device, teacher: ModelRun | None) -> Training:
    targets = _soft_targets(job, teacher, device) if teacher else None
    return new_training(job, data.training, data.validation, device=device, teacher=targets)


def _train(
    job: Job, run: ModelRun, data: DataSet, training: Training, *, observer: Observer
) -> dict[str, Any]:
    run.resume(training)
    observer.started(job, epochs_done=len(training.history))
    while not training.done:
        training.train_epoch(observer)
        run.save(training)
    card = _card(job, run, training, data)
    run.finish(training, card)
    return card


def _soft_targets(job: Job, teacher: ModelRun, device: Device) -> SoftTargets:
    """What `teacher` says of the views of `job`; kept beside the teacher for all whose views are the same."""
    views = {
        "seed": job.seed if job.view_seed is None else job.view_seed,
        "augmentation": job.model.augmentation.model_dump(exclude_defaults=True),
        "leave_out": sorted(job.model.leave_out),
    }
    folder = teacher.folder / f"soft-targets-{fingerprint(views)[:8]}"
    return SoftTargets(load_checkpoint(teacher.checkpoint).network, device, folder)


def _decisive(job: Job, data: DataSet, device: Device, teacher: str | None) -> dict[str, Any]:
    views = {} if job.view_seed is None else {"view_seed": job.view_seed}
    return views | {
        "name": job.name,
        "model": job.model.model_dump(exclude={"control"}),
        "teacher": teacher,
        "seed": job.seed,
        "dataset": data.sha256,
        "validation_digits": len(data.validation),
        "device": device.type,
        "bfloat16": device.bfloat16,
        "torch": version("torch"),
        "revision": REVISION,
    }


def _card(job: Job, run: ModelRun, training: Training, data: DataSet) -> dict[str, Any]:
    kept = training.kept_record
    return {
        "name": job.name,
        "architecture": job.model.architecture.model_dump(),
        "recipe": run.decisive,
        "fingerprint": run.fingerprint,
        "dataset": data.sha256,
        "tools": {name: version(name) for name in ("torch", "numpy", "safetensors")}
        | {"python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "processes": size() if isinstance(training, SharedTraining) else 1,
        "epoch": int(kept["epoch"]),
        "validation_errors": int(kept["validation_errors"]),
        "parameters": sum(weight.numel() for weight in training.network.parameters()),
        "seconds": round(sum(record["seconds"] for record in training.history), 3),
    }
