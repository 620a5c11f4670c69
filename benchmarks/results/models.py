"""The models under measurement, and what a result file should remember of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from serving.model.repository import ModelEntry, load_repository
from training.recipe.files import read_recipe
from training.runs.pipeline import jobs

INT8 = "-int8"
FACTS = (
    "version",
    "sha256",
    "size_bytes",
    "precision",
    "architecture",
    "parameters",
    "test_errors",
    "test_accuracy",
)


def select_models(models_dir: Path, names: Sequence[str] = ()) -> dict[str, ModelEntry]:
    """Return the models called `names`, or all of them. Raises `BenchmarkError` for an unknown name."""
    entries = load_repository(models_dir)
    if unknown := set(names) - entries.keys():
        raise BenchmarkError(f"{models_dir} has no model {sorted(unknown)}, it has {sorted(entries)}")
    return {name: entries[name] for name in names or entries}


def models_of(recipe: str, models_dir: Path) -> list[str]:
    """Return the names of what `recipe` trains, in its order, each followed by its int8 export where there is one.

    Raises `DistilleryError` for a recipe, and `RepositoryError` for a model repository, that cannot be read.
    """
    exported = load_repository(models_dir)
    names = []
    for job in jobs(read_recipe(recipe)):
        names += [job.name, *([f"{job.name}{INT8}"] if f"{job.name}{INT8}" in exported else [])]
    return names


def model_facts(entries: dict[str, ModelEntry]) -> dict[str, dict[str, Any]]:
    """Return by name what a reader of the figures asks of a model: how big it is and how often it errs."""
    return {name: entry.manifest.model_dump(include=set(FACTS)) for name, entry in entries.items()}
