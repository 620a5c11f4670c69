"""Train the models of a recipe in order, each student after its teacher.

A finished model with the same settings is reused; an interrupted one is resumed after its last epoch.
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from training.data.mnist import Digits, find_mnist, load_training, without
from training.data.mnist_files import SHA256, DatasetError
from training.data.request_log import KEY, LoggedDigits
from training.distributed import on_rank_0, size
from training.loop.device import Device
from training.loop.logged_images import LoggedImages, Trust
from training.loop.soft_targets import SoftTargets
from training.loop.trainer import Job, Observer, Record, Training
from training.model.checkpoint import load_checkpoint
from training.recipe.schema import ALONE, Recipe
from training.runs.folder import ModelRun, cache_key
from training.runs.lock import locked

REVISION = 3
"""Incremented when the same recipe begins to give other weights or other files, so that older models are not reused."""


def jobs(recipe: Recipe) -> list[Job]:
    """Return the models of `recipe` in the order of training; a student's control comes before it."""
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
    """Training and validation digits, and the SHA-256 of the files they come from, by name.

    Students also learn from the images of a request log.
    """

    training: Digits
    validation: Digits
    sha256: dict[str, str]
    log: LoggedDigits | None = None

    @classmethod
    def of_mnist(cls, data_dir: Path | None, request_log: Path | None = None) -> "DataSet":
        """Load MNIST's training files, and a request log. Raises `DatasetError` and `RequestLogError`."""
        folder = find_mnist(data_dir)
        log = LoggedDigits.read(request_log, folder) if request_log else None
        return cls(*load_training(folder), SHA256, log)

    def log_of(self, job: Job) -> LoggedDigits | None:
        """Return the request log for a student; None for other models: a control has no teacher to label it."""
        return self.log if job.distillation else None

    def hashes(self, job: Job) -> dict[str, str]:
        """Return the SHA-256 of everything that `job` learns from, by name."""
        log = self.log_of(job)
        return self.sha256 | ({KEY: log.sha256} if log else {})

    def logged_digits(self, job: Job) -> Digits | None:
        """Return the images of the log that `job` can learn from. Raises `DatasetError` where labels are missing."""
        log = self.log_of(job)
        if log is None or job.distillation is None:
            return None
        if not (job.distillation.needs_labels or job.model.leave_out):
            return log.training
        labelled = without(log.labelled, job.model.leave_out)
        if not len(labelled):
            reason = (
                f"leave_out = {job.model.leave_out}"
                if job.model.leave_out
                else f'loss = "{job.distillation.loss}", alpha = {job.distillation.alpha:g}'
            )
            raise DatasetError(
                f"--request-log: {job.name} learns from labelled images only ({reason}), and of the log's "
                f"{len(log.training):,} images none is labelled; send feedback to the service, or use the loss kl "
                "with an alpha above 0"
            )
        return labelled


def train_recipe(
    recipe: Recipe,
    data: DataSet,
    *,
    device: Device,
    root: Path,
    observer: Observer,
    seeds: Sequence[int] = (),
) -> dict[str, ModelRun]:
    """Train the models of `recipe` into `root` and return them by name. Raises `DistilleryError`.

    `seeds` are trained too, one after another; the links in `root` name the models of the recipe's own seed.
    """
    with locked(root):
        current = _runs(recipe, data, device=device, root=root)
        for job in jobs(recipe):
            data.logged_digits(job)  # missing labels are an error before any training
        for run in current.values():
            on_rank_0(run.drop_stale_link)
        for seed in dict.fromkeys([recipe.seed, *seeds]):
            of_seed = recipe.model_copy(update={"seed": seed})
            runs = _runs(of_seed, data, device=device, root=root)
            for job in jobs(of_seed):
                run, teacher = runs[job.name], _teacher(job, runs)
                train_model(job, run, data, device=device, teacher=teacher, observer=observer)
                if seed == recipe.seed:
                    on_rank_0(run.make_current)
    return current


def model_run(job: Job, data: DataSet, *, device: Device, root: Path, teacher: ModelRun | None) -> ModelRun:
    """Return the run of `job`, trained or not."""
    inputs = _inputs(job, data, device, teacher.cache_key if teacher else None)
    # The key leaves out settings at their defaults: a new setting does not change the key of older models.
    chosen = job.model.model_dump(exclude={"control"}, exclude_defaults=True)
    return ModelRun(root, job.name, inputs, key=cache_key(inputs | {"model": chosen}))


def train_model(
    job: Job,
    run: ModelRun,
    data: DataSet,
    *,
    device: Device,
    teacher: ModelRun | None,
    observer: Observer,
) -> dict[str, Any]:
    """Train one model unless it is finished, and return the metadata of its checkpoint; does not link it."""
    with locked(run.folder, wait=True):  # a sweep may be training the same model
        metadata = on_rank_0(run.metadata)
        if metadata is not None:
            observer.reused(job, metadata)
        else:
            training = _train(job, run, data, device=device, teacher=teacher, observer=observer)
            metadata = _metadata(job, run, training, data)
            on_rank_0(partial(run.finish, training, metadata))
            observer.finished(job, metadata)
        on_rank_0(run.drop_state)
    return metadata


def _runs(recipe: Recipe, data: DataSet, *, device: Device, root: Path) -> dict[str, ModelRun]:
    runs: dict[str, ModelRun] = {}
    for job in jobs(recipe):
        runs[job.name] = model_run(job, data, device=device, root=root, teacher=_teacher(job, runs))
    return runs


def _teacher(job: Job, runs: dict[str, ModelRun]) -> ModelRun | None:
    return runs[job.distillation.teacher] if job.distillation else None


def _train(
    job: Job, run: ModelRun, data: DataSet, *, device: Device, teacher: ModelRun | None, observer: Observer
) -> Training:
    targets = _soft_targets(job, teacher, device) if teacher else None
    log = data.log_of(job)
    training = Training(
        job,
        data.training,
        data.validation,
        device=device,
        teacher=targets,
        logged=_logged_images(job, data, teacher, device) if teacher else None,
        logged_validation=log.validation if log else None,
    )
    if state := on_rank_0(run.prepare):
        run.resume(training, state)
    observer.started(job, epochs_done=len(training.history))
    while not training.done:
        training.train_epoch(observer)
        on_rank_0(partial(run.save, training))
    return training


def _soft_targets(job: Job, teacher: ModelRun, device: Device, **images: Any) -> SoftTargets:
    """Return the logits of `teacher`, cached next to it for all jobs with the same views as `job` of these `images`."""
    views = {
        "seed": job.view_seed_or_seed,
        "augmentation": job.model.augmentation.model_dump(exclude_defaults=True),
        "leave_out": sorted(job.model.leave_out),
    }
    network = on_rank_0(lambda: load_checkpoint(teacher.checkpoint).network)
    return SoftTargets(network, device, teacher.folder / f"soft-targets-{cache_key(views | images)[:8]}")


def _logged_images(job: Job, data: DataSet, teacher: ModelRun, device: Device) -> LoggedImages | None:
    """Return the images of the request log that `job` learns from, with soft targets of `teacher`."""
    digits, log = data.logged_digits(job), data.log_of(job)
    if digits is None or log is None or job.distillation is None:
        return None
    network = on_rank_0(lambda: load_checkpoint(teacher.checkpoint).network)
    trust = Trust.of(SoftTargets(network, device), device.move(log.labelled), job.distillation.log_trust)
    if not trust.unlabelled:
        digits = without(log.labelled, job.model.leave_out)
    mnist = len(without(data.training, job.model.leave_out))
    logged = LoggedImages(digits, job.model, job.view_seed_or_seed, mnist=mnist, device=device)
    logged.teacher = _soft_targets(
        job, teacher, device, log=log.sha256, labelled=len(digits) < len(log.training), size=logged.size
    )
    logged.trust = trust
    return logged


def _inputs(job: Job, data: DataSet, device: Device, teacher: str | None) -> dict[str, Any]:
    views = {} if job.view_seed is None else {"view_seed": job.view_seed}
    return views | {
        "name": job.name,
        "model": job.model.model_dump(exclude={"control"}),
        "teacher": teacher,
        "seed": job.seed,
        "dataset": data.hashes(job),
        "validation_digits": len(data.validation),
        "device": device.type,
        "bfloat16": device.bfloat16,
        "torch": version("torch"),
        "revision": REVISION,
    }


def _metadata(job: Job, run: ModelRun, training: Training, data: DataSet) -> dict[str, Any]:
    selected = training.selected_record
    log = data.log_of(job)
    of_log = {"request_log": _describe_log(log, training, selected)} if log else {}
    return of_log | {
        "name": job.name,
        "architecture": job.model.architecture.model_dump(),
        "recipe": run.inputs,
        "cache_key": run.cache_key,
        "dataset": data.hashes(job),
        "tools": {name: version(name) for name in ("torch", "numpy", "safetensors")}
        | {"python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "processes": size(),
        "epoch": int(selected["epoch"]),
        "validation_errors": int(selected["validation_errors"]),
        "parameters": sum(weight.numel() for weight in training.network.parameters()),
        "seconds": round(sum(record["seconds"] for record in training.history), 3),
    }


def _describe_log(log: LoggedDigits, training: Training, selected: Record) -> dict[str, int]:
    """Return what a checkpoint states on a request log: its counts, images per epoch, and errors on those held out."""
    logged, held_out = training.logged, training.logged_validation
    facts = log.facts()
    if logged and logged.trust:
        facts["per_epoch"] = logged.size
        facts |= {f"teacher_{name}": int(value) for name, value in logged.trust._asdict().items()}
    if logged and held_out:
        facts["errors"] = int(selected["log_errors"])
        facts["errors_of_teacher"] = on_rank_0(lambda: logged.teacher.errors(held_out))
    return facts
