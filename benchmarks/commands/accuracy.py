"""What distillation brings and what int8 costs, in test errors, over several seeds.

    distillery-bench accuracy                                    the recipe `quick`, three seeds
    distillery-bench accuracy --recipe notebook --seeds 0

Each seed is trained, evaluated and exported by the stages' own commands; what is trained already is used again.
"""

import json
import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.commands.seeds import SeedsBench
from benchmarks.results.files import write_result
from benchmarks.results.models import models_of
from training.evaluation.significance import mean_interval
from training.recipe.schema import ALONE


class AccuracyBench(SeedsBench):
    """Count test errors of a recipe's teachers, students, their controls and int8 exports, over seeds."""

    def run(self) -> None:
        seeds = [self._one(seed) for seed in self.seeds]
        counts = {name: [seed["models"][name] for seed in seeds] for name in seeds[0]["models"]}
        rows = {name: _summary(errors) for name, errors in counts.items()}
        saved = {
            name: _summary(
                [alone - taught for alone, taught in zip(counts[name + ALONE], errors, strict=True)]
            )
            for name, errors in counts.items()
            if name + ALONE in counts
        }
        data = {
            "recipe": Path(self.recipe).stem,
            "seeds": seeds,
            "teacher_seed": self.teacher_seed,
            "test_errors": rows,
            "saved": saved,
            "saved_by_distillation": saved.get("student"),  # what the README's table shows
        }
        path = write_result(accuracy_kind(self.recipe), data, folder=self.results_dir)
        Console().print(_table(data))
        print(json.dumps({"result": str(path), "test_errors": rows}))

    def _one(self, seed: int) -> dict[str, Any]:
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


def accuracy_kind(recipe: str) -> str:
    """The kind of result that a recipe's errors are kept as."""
    return "accuracy_" + "_".join(re.findall("[a-z]+", Path(recipe).stem.lower()))


def _summary(values: list[int]) -> dict[str, Any]:
    """Mean and 95 % interval (Student's t) over seeds."""
    centre, spread = mean_interval(values)
    return {
        "values": values,
        "mean": round(centre, 2),
        "interval_95": round(spread, 2) if spread else spread,
    }


def _table(data: dict[str, Any]) -> Table:
    title = (
        f"test errors of 10,000, recipe {data['recipe']}, seeds {[seed['seed'] for seed in data['seeds']]}"
    )
    table = Table("model", "each seed", "mean", "95 % interval", title=title)
    saved = {f"{name}, saved by distillation": row for name, row in data["saved"].items()}
    for name, row in (data["test_errors"] | saved).items():
        interval = "" if row["interval_95"] is None else f"± {row['interval_95']:.1f}"
        table.add_row(name, ", ".join(map(str, row["values"])), f"{row['mean']:.1f}", interval)
    return table
