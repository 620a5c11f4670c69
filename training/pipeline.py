"""A recipe from beginning to end: the teacher, the student alone, the student distilled from the teacher.

What is trained already is used again; what was interrupted goes on.
"""

import platform
import tomllib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

from training.checkpoint import load_checkpoint
from training.data import SHA256, Digits, find_mnist, load_training
from training.device import Device
from training.loop import Job, Observer, Training
from training.network import MLP
from training.recipe import Distillation, Section, Student, Teacher, find_recipe
from training.runs import ModelRun, only_one

REVISION = 1
"""Raised whenever the same recipe comes to mean other weights, so that older ones are not taken for them."""
MODELS = ("teacher", "student-alone", "student")


class Recipe(Section):
    """A recipe with everything settled."""

    name: str
    seed: int = 0
    teacher: Teacher = Teacher()
    student: Student = Student()
    distillation: Distillation = Distillation()

    def jobs(self) -> list[Job]:
        """Return the three networks in the order they are trained, named as in `MODELS`."""
        return [
            Job("teacher", self.teacher, self.seed),
            Job("student-alone", self.student, self.seed),
            Job("student", self.student, self.seed, self.distillation),
        ]


def read_recipe(name: str) -> Recipe:
    """Return the recipe `quick`, `notebook`, or of a TOML file, without flags and environment."""
    path = find_recipe(name)
    return Recipe.model_validate({"name": path.stem, **tomllib.loads(path.read_text(encoding="utf-8"))})


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


class RunObserver(Observer, Protocol):
    """Who is told how a recipe goes."""

    def reused(self, job: Job, card: dict[str, Any]) -> None: ...
    def finished(self, job: Job, card: dict[str, Any]) -> None: ...


def train_recipe(
    recipe: Recipe, data: DataSet, *, device: Device, root: Path, observer: RunObserver
) -> dict[str, ModelRun]:
    """Train the three models of `recipe` into `root` and return them by name; raises `DistilleryError`."""
    runs: dict[str, ModelRun] = {}
    for job in recipe.jobs():
        teacher_fingerprint = runs["teacher"].fingerprint if job.distillation else None
        runs[job.name] = ModelRun(root, job.name, _decisive(job, data, device, teacher_fingerprint))
    with only_one(root):
        for run in runs.values():
            run.drop_stale_link()
        for job in recipe.jobs():
            run = runs[job.name]
            if run.finished:
                observer.reused(job, load_checkpoint(run.checkpoint).card)
            else:
                teacher = load_checkpoint(runs["teacher"].checkpoint).network if job.distillation else None
                card = _train(job, run, data, device=device, teacher=teacher, observer=observer)
                observer.finished(job, card)
            run.make_current()
    return runs


def _train(
    job: Job, run: ModelRun, data: DataSet, *, device: Device, teacher: MLP | None, observer: RunObserver
) -> dict[str, Any]:
    training = Training(job, data.training, data.validation, device=device, teacher=teacher)
    run.resume(training)
    observer.started(job, epochs_done=len(training.history))
    while not training.done:
        training.train_epoch(observer)
        run.save(training)
    card = _card(job, run, training, data)
    run.finish(training, card)
    return card


def _decisive(job: Job, data: DataSet, device: Device, teacher: str | None) -> dict[str, Any]:
    return {
        "name": job.name,
        "network": job.network.model_dump(),
        "distillation": job.distillation.model_dump() if job.distillation else None,
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
    best = training.best_record
    return {
        "name": job.name,
        "hidden": job.network.hidden,
        "recipe": run.decisive,
        "fingerprint": run.fingerprint,
        "dataset": data.sha256,
        "tools": {name: version(name) for name in ("torch", "numpy", "safetensors")}
        | {"python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "epoch": int(best["epoch"]),
        "validation_errors": int(best["validation_errors"]),
        "parameters": sum(weight.numel() for weight in training.network.parameters()),
        "seconds": round(sum(record["seconds"] for record in training.history), 3),
    }
