"""`distillery-bench accuracy`: test errors of a recipe over seeds, with and without distillation, fp32 and int8.

Each seed is trained, evaluated and exported by the commands of the stages; finished work is reused.
"""

import re
from pathlib import Path
from typing import Any

from benchmarks.commands.seeds import SeedsBench, mean_of, models_of
from training.recipe.schema import ALONE


class Accuracy(SeedsBench):
    """Count the test errors of a recipe's models and int8 exports, over seeds."""

    examples = (
        "distillery-bench accuracy",
        "distillery-bench accuracy --recipe notebook --seeds 0",
    )

    @property
    def kind(self) -> str:
        return accuracy_kind(self.recipe)

    @property
    def template(self) -> str:
        return "test-errors"

    def measure(self) -> dict[str, Any]:
        seeds = [self._measure_seed(seed) for seed in self.seeds]
        counts = {name: [seed["models"][name] for seed in seeds] for name in seeds[0]["models"]}
        saved = {
            name: [control - own for control, own in zip(counts[name + ALONE], errors, strict=True)]
            for name, errors in counts.items()
            if name + ALONE in counts
        }
        test_errors, saved_errors = (
            {name: {"values": values, **mean_of(values)} for name, values in each.items()}
            for each in (counts, saved)
        )
        return {
            "recipe": Path(self.recipe).stem,
            "seeds": seeds,
            "teacher_seed": self.teacher_seed,
            "test_errors": test_errors,
            "saved": saved_errors,
            "saved_by_distillation": saved_errors.get("student"),
        }

    def _measure_seed(self, seed: int) -> dict[str, Any]:
        """Train, evaluate and export one seed; return test errors by model and seconds of training."""
        run = self.run_seed(seed)
        names = models_of(self.recipe, run.models_dir)
        return {
            "seed": seed,
            "models": {name: run.manifests[name].test_errors for name in names},
            "validation_errors": {name: model["validation_errors"] for name, model in run.evaluation.items()},
            "training_seconds": {name: model["seconds"] for name, model in run.evaluation.items()},
            "cache_keys": {name: model["cache_key"] for name, model in run.evaluation.items()},
        }

    def summary(self, data: dict[str, Any]) -> dict[str, Any]:
        return {"test_errors": data["test_errors"]}


def accuracy_kind(recipe: str) -> str:
    """Return the kind of result file for a recipe's errors."""
    return "accuracy_" + "_".join(re.findall("[a-z]+", Path(recipe).stem.lower()))
