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
from torch import Tensor

from benchmarks.errors import BenchmarkError
from serving.repository import Manifest, load_repository
from training.pipeline import jobs
from training.recipe import read_recipe


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


def run_seed(
    recipe: str,
    seed: int,
    *,
    out: Path,
    models_dir: Path,
    data_dir: Path | None,
    teacher_seed: int | None = None,
) -> SeedRun:
    """Train, evaluate and export `recipe` with `seed`; raises `BenchmarkError` when a stage fails.

    With a `teacher_seed` all seeds learn from the same first teachers. Every network that can be quantised is
    exported in int8, too.
    """
    single = [job.name for job in jobs(read_recipe(recipe)) if job.model.members == 1]
    int8 = [f"--int8={','.join(single)}"] if single else []
    data = [f"--data-dir={data_dir}"] if data_dir else []
    run_dir, models_dir = out / Path(recipe).stem, models_dir / f"{Path(recipe).stem}-{seed}"
    place = [f"--recipe={recipe}", f"--out={out}", *data]
    seeds = [f"--seed={seed}", *([] if teacher_seed is None else [f"--teacher-seed={teacher_seed}"])]
    for command in (
        ["training", *place, *seeds],
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
