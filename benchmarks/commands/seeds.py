"""One seed of a recipe from training to model repository, by the commands of the stages; finished work is reused."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor

from benchmarks.commands.bench import Bench
from benchmarks.errors import BenchmarkError
from benchmarks.results.models import INT8
from serving.model.repository import Manifest, load_repository
from training.commands.settings import DataSettings
from training.evaluation.metrics import error_mask
from training.evaluation.significance import mean_interval
from training.recipe.files import read_recipe
from training.runs.pipeline import jobs

INTERRUPTED = 130


def mean_of(values: Sequence[int]) -> dict[str, Any]:
    """Return mean and 95 % interval (Student's t) over seeds."""
    mean, interval = mean_interval(values)
    return {"mean": round(mean, 2), "interval_95": None if interval is None else round(interval, 2)}


@dataclass(frozen=True)
class SeedRun:
    """The trained and exported models of one seed."""

    seed: int
    models_dir: Path
    evaluation: dict[str, dict[str, Any]]
    """By trained model, as `distillery-train evaluate` writes it."""
    manifests: dict[str, Manifest]
    """By exported model; `NAME-int8` is not in `evaluation`."""

    def wrong(self, name: str) -> Tensor:
        """Return `bool [N]`: the test digits that the trained model `name` classifies wrongly."""
        return error_mask(self.evaluation[name])


class SeedsBench(Bench, DataSettings):
    """A benchmark of a recipe that is trained with several seeds."""

    recipe: str = Field("quick", description="quick, another recipe, or a TOML file")
    seeds: list[int] = Field([0, 1, 2], min_length=1, description="seeds to train the recipe with")
    teacher_seed: int | None = Field(
        None, ge=0, description="one seed for the teachers and views of all students; each its own by default"
    )
    out: Path = Field(Path("runs"), description="folder for runs")
    models_dir: Path = Field(Path("models-of-seeds"), description="folder for one model repository per seed")

    def run_seed(self, seed: int) -> SeedRun:
        """Train, evaluate and export the recipe with `seed`; raises `BenchmarkError` when a stage fails.

        Every network that can be quantised is exported in int8, too.
        """
        name = Path(self.recipe).stem
        single = [job.name for job in jobs(read_recipe(self.recipe)) if job.model.members == 1]
        int8 = [f"--int8={','.join(single)}"] if single else []
        data = [f"--data-dir={self.data_dir}"] if self.data_dir else []
        run_dir, models_dir = self.out / name, self.models_dir / f"{name}-{seed}"
        place = [f"--recipe={self.recipe}", f"--out={self.out}", *data]
        shared = [] if self.teacher_seed is None else [f"--teacher-seed={self.teacher_seed}"]
        run_stage("training", *place, f"--seed={seed}", *shared)
        run_stage("training", "evaluate", *place)
        run_stage("export", f"--run-dir={run_dir}", f"--models-dir={models_dir}", *int8, *data)
        manifests = {name: entry.manifest for name, entry in load_repository(models_dir).items()}
        evaluation = json.loads((run_dir / "evaluation.json").read_bytes())
        for name, model in evaluation.items():
            if manifests[name].test_errors != model["errors"]:
                raise BenchmarkError(
                    f"seed {seed}: {name} has {model['errors']} test errors, its export {manifests[name].test_errors}"
                )
        return SeedRun(seed, models_dir, evaluation, manifests)


def models_of(recipe: str, models_dir: Path) -> list[str]:
    """Return the models that `recipe` trains, in its order, each followed by its int8 export where there is one.

    Raises `DistilleryError` for an invalid recipe, and `RepositoryError` for an invalid model repository.
    """
    exported = load_repository(models_dir)
    names = []
    for job in jobs(read_recipe(recipe)):
        names += [job.name, *([f"{job.name}{INT8}"] if f"{job.name}{INT8}" in exported else [])]
    return names


def run_stage(*command: str) -> None:
    """Run `python -m` a stage with its arguments; raises `BenchmarkError` when it fails."""
    check_status(command, subprocess.run([sys.executable, "-m", *command], check=False).returncode)


def check_status(command: Sequence[str], status: int) -> None:
    """Raise `BenchmarkError` for a stage that failed, `KeyboardInterrupt` for one that was interrupted."""
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status:
        raise BenchmarkError(
            f"python -m {' '.join(command)} failed with status {status}; see its output above"
        )
