"""Finished models read back from a runs folder, and the same model trained with other seeds.

A model's folder holds everything its weights depend on in `recipe.json` (training/runs/folder.py). Two models are the
same but for the seed if nothing else differs in these files, their own and those of their teachers.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from training.recipe.schema import Model
from training.runs.folder import RunError, current_folder


@dataclass(frozen=True)
class Trained:
    """A finished model: its folder, `runs/<recipe>/<model>-<cache key>`, and everything its weights depend on."""

    folder: Path
    inputs: dict[str, Any]
    model: Model

    @property
    def name(self) -> str:
        return str(self.inputs["name"])

    @property
    def seed(self) -> int:
        return int(self.inputs["seed"])

    @property
    def checkpoint(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def teacher(self) -> "Trained | None":
        """The model whose soft targets it was trained on. Raises `RunError` if that was deleted."""
        if self.model.distillation is None:
            return None
        folder = f"{self.model.distillation.teacher}-{self.inputs['teacher'][:8]}"
        return read_trained(self.folder.with_name(folder))

    @property
    def inputs_without_seed(self) -> dict[str, Any]:
        """Everything its weights depend on but the seeds, its teachers' included. Raises `RunError` as `teacher`."""
        teacher = self.teacher
        return {name: value for name, value in self.inputs.items() if name != "seed"} | {
            "model": self.model.model_dump(),  # with settings newer than the file, at their defaults
            "teacher": teacher.inputs_without_seed if teacher else None,
        }


def read_trained(folder: Path) -> Trained:
    """Read the model in `folder`, or where it links to. Raises `RunError` if that is not a finished model."""
    folder = folder.resolve()
    if not (folder / "model.safetensors").exists():
        raise RunError(f"there is no finished model in {folder}; train it with distillery-train")
    try:
        inputs = json.loads((folder / "recipe.json").read_bytes())
        # A setting removed since, such as `quantised_from`, does not matter where it was not set.
        settings = {
            name: value
            for name, value in inputs["model"].items()
            if name in Model.model_fields or value is not None
        }
        return Trained(folder, inputs, Model.model_validate(settings))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise RunError(
            f"{folder / 'recipe.json'} does not describe how the model was trained ({reason}); train it again"
        ) from None


def current_model(root: Path, name: str) -> Trained:
    """Return the model that `root/name` links to. Raises `RunError`."""
    folder = current_folder(root, name)
    if not (folder / "model.safetensors").exists():
        raise RunError(f"{root} has no finished {name}; train it with distillery-train")
    return read_trained(folder)


def over_seeds(current: Trained, seeds: Sequence[int] | None = None) -> dict[int, Trained]:
    """Return `current` and the same model with other seeds, by seed: those in `seeds`, or all if None.

    Raises `RunError` for a seed that has not been trained.
    """
    inputs, found = current.inputs_without_seed, {current.seed: current}
    for folder in current.folder.parent.glob(f"{current.name}-*"):
        try:
            other = read_trained(folder)
            if other.seed not in found and other.inputs_without_seed == inputs:
                found[other.seed] = other
        except RunError:
            continue  # not finished, or written by another version
    if missing := set(seeds or ()) - found.keys():
        raise RunError(
            f"{current.name} was trained with the seeds {', '.join(map(str, sorted(found)))}, not with {min(missing)}; "
            f"train it with distillery-train --seed {min(missing)}"
        )
    return {seed: found[seed] for seed in sorted(found) if seeds is None or seed in {*seeds, current.seed}}
