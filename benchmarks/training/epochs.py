"""Seconds per epoch: `distillery-train`'s loop against the notebook's own."""

import sys
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.load.interleave import interleave
from benchmarks.results.ratio import Ratio
from benchmarks.training.notebook_loop import NotebookLoop, notebook_digits
from benchmarks.training.speed_cases import epoch_of
from benchmarks.training.time_to_accuracy import NOTEBOOK, teacher_and_student
from training.data.mnist import Digits, load_training
from training.data.views import PLAIN
from training.loop.device import Device
from training.loop.soft_targets import SoftTargets
from training.loop.trainer import Job, Training
from training.model.network import Network, build

EPOCH = 55_000
"""Digits in an epoch."""


def compare_epochs(
    folder: Path, notebook_folder: Path, *, device: Device, count: int, rounds: int
) -> dict[str, dict[str, Any]]:
    """Time both loops on `count` digits, interleaved, for the teacher and for the distilled student.

    Returns for each the seconds per 55,000 digits of both loops, as medians and by round, and their ratio, as median
    and with its interval (`speedup`, as `Ratio.as_json`). `targets_s` is the time for the teacher's logits, spent once
    per training and not in every epoch.
    """
    training, validation = load_training(folder)
    part = Digits(training.images[:count], training.labels[:count])
    digits = notebook_digits(notebook_folder)
    teacher = build(NOTEBOOK.models["teacher"]).eval()
    results = {}
    for job in teacher_and_student(NOTEBOOK):
        targets_s, ours = _new_training(job, part, validation, device, teacher)
        notebook = NotebookLoop(job, digits, teacher=teacher if job.distillation else None)
        loops: dict[str, Callable[[], float]] = {
            "ours_s": epoch_of(ours),
            "notebook_s": partial(_train_part, notebook, count),
        }
        print(f"{job.name}: {1 + rounds} rounds of {count:,} digits in both loops", file=sys.stderr)
        measured = interleave(list(loops.values()), 1 + rounds, lambda train: train() * EPOCH / count)
        # the first round warms up
        seconds = {loop: values[1:] for loop, values in zip(loops, measured, strict=True)}
        ratio = Ratio.within_rounds(seconds["ours_s"], seconds["notebook_s"], lower_is_better=True)
        results[job.role] = {
            **{loop: round(median(values), 3) for loop, values in seconds.items()},
            "ratio": round(ratio.median, 2),
            "speedup": ratio.as_json(),
            "targets_s": round(targets_s * EPOCH / count, 3),
            "rounds": {loop: [round(value, 3) for value in values] for loop, values in seconds.items()},
        }
    return results


def _new_training(
    job: Job, digits: Digits, validation: Digits, device: Device, teacher: Network
) -> tuple[float, Training]:
    """Return a new training, and the seconds that its soft targets took."""
    targets = SoftTargets(deepcopy(teacher), device) if job.distillation else None
    training = Training(job, digits, validation, device=device, teacher=targets)
    if targets is None:
        return 0.0, training
    start = time.perf_counter()
    targets.logits(PLAIN, training.digits.images)
    return time.perf_counter() - start, training


def _train_part(notebook: NotebookLoop, count: int) -> float:
    return notebook.train(torch.randperm(len(notebook.digits))[:count].tolist())
