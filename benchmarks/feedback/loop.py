"""The feedback loop on a real service: traffic, log, training, export, candidate, promotion; and what it brought.

Every step is what a person would do: the commands `distillery-train` and `distillery-export`, and requests to the
service. Images come from MNIST's training digits, the evaluation from its test digits.
"""

import math
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError
from benchmarks.feedback.comparison import interval
from benchmarks.feedback.models import from_repository
from benchmarks.systems.servers import ROOT
from distillery.request_log.read import read_log
from serving.model.tensors import Images
from training.evaluation.significance import mcnemar

LOGGED_S = 30
"""Within which the service must have written its last rows."""


def copy_run(source: Path, target: Path) -> None:
    """Copy the current models of a run without their caches, so that teachers need not be trained again."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_symlink():
            (target / path.name).symlink_to(path.readlink())
            shutil.copytree(path, target / path.readlink(), ignore=shutil.ignore_patterns("soft-targets-*"))


def run_command(module: str, *arguments: str | Path) -> None:
    """Run a command of this project. Raises `BenchmarkError` with its last lines if it fails."""
    given = [str(one.absolute()) if isinstance(one, Path) else one for one in arguments]
    done = subprocess.run(
        [sys.executable, "-m", module, *given],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    if done.returncode:
        lines = "\n".join((done.stderr or done.stdout).splitlines()[-5:])
        raise BenchmarkError(f"python -m {module} {' '.join(given)} failed:\n{lines}")


def wait_for_log(folder: Path, rows: int) -> None:
    """Wait until a log has this many images. Raises `BenchmarkError` if it does not within `LOGGED_S`."""
    deadline, found = time.monotonic() + LOGGED_S, 0
    while time.monotonic() < deadline:
        if any(folder.glob("requests-*.parquet")) and (found := len(read_log(folder))) >= rows:
            return
        time.sleep(0.5)
    raise BenchmarkError(f"{folder} has {found:,} of {rows:,} images after {LOGGED_S} s")


def evaluate(
    models_dir: Path, before: str, after: str, sets: dict[str, tuple[Images, NDArray[np.int64]]]
) -> list[dict[str, Any]]:
    """Return a row per set of images: errors of both versions of a model, and their difference with its interval."""
    models = [from_repository("--models-dir", reference, models_dir) for reference in (before, after)]
    rows = []
    for name, (images, labels) in sets.items():
        wrong = [model.predict(images).digits != labels for model in models]
        test = mcnemar(*(torch.from_numpy(one) for one in wrong))
        count = len(labels)
        rows.append(
            {
                "images_of": name,
                "images": count,
                "errors": [int(one.sum()) for one in wrong],
                "accuracy": [round(1 - float(one.mean()), 6) for one in wrong],
                "interval_95": [[round(end, 6) for end in interval(int(one.sum()), count)] for one in wrong],
                "gain": round((test.only_a - test.only_b) / count, 6),
                "gain_interval_95": difference_interval(test.only_a, test.only_b, count),
                "p": test.p,
            }
        )
    return rows


def difference_interval(only_before: int, only_after: int, images: int) -> list[float]:
    """Return the 95 % interval of the gain in accuracy on the same images.

    Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions": Wald's interval with
    half an image added to each cell. `only_before` are the images that only the model before misclassifies.
    """
    gained, lost, count = only_before + 0.5, only_after + 0.5, images + 2
    centre = (gained - lost) / count
    half = 1.96 * math.sqrt(gained + lost - (gained - lost) ** 2 / count) / count
    return [round(centre - half, 6), round(centre + half, 6)]


def mixed(parts: Sequence[tuple[Images, NDArray[np.int64]]], seed: int) -> tuple[Images, NDArray[np.int64]]:
    """Return several sets of images as one, in random order."""
    images = np.concatenate([part for part, _ in parts])
    labels = np.concatenate([of_part for _, of_part in parts])
    order = np.random.default_rng(seed).permutation(len(labels))
    return images[order], labels[order]
