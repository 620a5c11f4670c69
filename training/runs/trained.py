"""What was trained, read back from the disk; and the same model with other seeds.

A training lies in a folder of its own, with all that decided its weights in `recipe.json` (training/runs/folder.py).
Two are of one kind where nothing but the seed differs, their own and that of their teachers.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from training.recipe.schema import Model
from training.runs.folder import RunError


@dataclass(frozen=True)
class Trained:
    """A finished model: its folder, `runs/<recipe>/<model>-<fingerprint>`, and what decided its weights."""

    folder: Path
    decisive: dict[str, Any]
    model: Model

    @property
    def name(self) -> str:
        return str(self.decisive["name"])

    @property
    def seed(self) -> int:
        return int(self.decisive["seed"])

    @property
    def checkpoint(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def teacher(self) -> "Trained | None":
        """Whose soft targets it learned. Raises `RunError` when that model is gone."""
        if self.model.distillation is None:
            return None
        folder = f"{self.model.distillation.teacher}-{self.decisive['teacher'][:8]}"
        return read_trained(self.folder.with_name(folder))

    @property
    def kind(self) -> dict[str, Any]:
        """Everything that decided its weights but the seed. Raises `RunError` as `teacher` does."""
        teacher = self.teacher
        return {name: value for name, value in self.decisive.items() if name != "seed"} | {
            "model": self.model.model_dump(),  # with settings that are younger than it, at their defaults
            "teacher": teacher.kind if teacher else None,
        }


def read_trained(folder: Path) -> Trained:
    """Read what lies in `folder`, or where it links to. Raises `RunError` if that is no finished model."""
    folder = folder.resolve()
    if not (folder / "model.safetensors").exists():
        raise RunError(f"there is no finished model in {folder}; train it with distillery-train")
    try:
        decisive = json.loads((folder / "recipe.json").read_bytes())
        # A setting removed since, such as `quantised_from`, does not matter where it was not set.
        settings = {
            name: value
            for name, value in decisive["model"].items()
            if name in Model.model_fields or value is not None
        }
        return Trained(folder, decisive, Model.model_validate(settings))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise RunError(
            f"{folder / 'recipe.json'} does not say how the model was trained ({reason}); train it again"
        ) from None


def current_model(root: Path, name: str) -> Trained:
    """Return the model that `root/name` links to. Raises `RunError`."""
    if not (root / name / "model.safetensors").exists():
        raise RunError(f"{root} has no finished {name}; train it with distillery-train")
    return read_trained(root / name)


def over_seeds(current: Trained, seeds: Sequence[int] | None = None) -> dict[int, Trained]:
    """Return the models of the kind of `current` by seed: itself, and those of `seeds`, all there are if None.

    Raises `RunError` for a seed that has not been trained.
    """
    kind, found = current.kind, {current.seed: current}
    for folder in current.folder.parent.glob(f"{current.name}-*"):
        try:
            other = read_trained(folder)
            if other.seed not in found and other.kind == kind:
                found[other.seed] = other
        except RunError:
            continue  # not finished, or made by another version: no model to compare with
    if missing := set(seeds or ()) - found.keys():
        raise RunError(
            f"{current.name} was trained with the seeds {', '.join(map(str, sorted(found)))}, not with {min(missing)}; "
            f"distillery-train --seed {min(missing)} does it"
        )
    return {seed: found[seed] for seed in sorted(found) if seeds is None or seed in {*seeds, current.seed}}
