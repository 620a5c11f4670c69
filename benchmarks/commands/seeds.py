"""One seed of a recipe, from training to model repository, by the stages' own commands.

What is trained, evaluated or exported already is used again: a run that was interrupted loses nothing.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from benchmarks.errors import BenchmarkError
from benchmarks.results.files import RESULTS
from distillery import Command
from serving.model.repository import Manifest, load_repository
from training.recipe.files import read_recipe
from training.runs.pipeline import jobs


@dataclass(frozen=True)
class SeedRun:
    """What one seed came to."""

    seed: int
    models_dir: Path
    evaluation: dict[str, dict[str, Any]]
    """By trained model, as `distillery-train evaluate` writes it."""
    manifests: dict[str, Manifest]
    """By exported model; `NAME-int8` has none in `evaluation`."""

    def wrong(self, name: str) -> Tensor:
        """Return `bool [N]`: which test digits the trained model `name` gets wrong."""
        model = self.evaluation[name]
        wrong = torch.zeros(sum(map(sum, model["confusion"])), dtype=torch.bool)
        wrong[[mistake["index"] for mistake in model["mistakes"]]] = True
        return wrong


class SeedsBench(Command):
    """A benchmark of a recipe that is trained with several seeds."""

    recipe: str = Field("quick", description="quick, another recipe, or a TOML file")
    seeds: list[int] = Field([0, 1, 2], min_length=1, description="one training of all each")
    teacher_seed: int | None = Field(
        None,
        ge=0,
        description="one seed for the teachers and views of all students; each its own if not given",
    )
    out: Path = Field(Path("runs"), description="folder for runs")
    models_dir: Path = Field(Path("models-of-seeds"), description="a model repository for each seed")
    data_dir: Path | None = Field(
        None, description="folder with the MNIST files, if not to be found or fetched"
    )
    results_dir: Path = Field(RESULTS, description="where the result is kept")

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
        for command in (
            ["training", *place, f"--seed={seed}", *shared],
            ["training", "evaluate", *place],
            ["export", f"--run-dir={run_dir}", f"--models-dir={models_dir}", *int8, *data],
        ):
            run_stage(*command)
        manifests = {name: entry.manifest for name, entry in load_repository(models_dir).items()}
        evaluation = json.loads((run_dir / "evaluation.json").read_bytes())
        for name, model in evaluation.items():
            if manifests[name].test_errors != model["errors"]:
                raise BenchmarkError(
                    f"seed {seed}: {name} errs on {model['errors']} digits, its export on {manifests[name].test_errors}"
                )
        return SeedRun(seed, models_dir, evaluation, manifests)


def run_stage(*command: str) -> None:
    """Run `python -m` a stage with its arguments; raises `BenchmarkError` when it fails."""
    if subprocess.run([sys.executable, "-m", *command], check=False).returncode:
        raise BenchmarkError(f"python -m {' '.join(command)} failed; what it said stands above")
