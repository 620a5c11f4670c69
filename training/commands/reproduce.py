"""`distillery-train reproduce`: the paper's MNIST experiments over several seeds."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveFloat
from rich.console import Console
from rich.table import Table

from distillery import Metavar
from distillery.files import is_outdated
from training.commands.progress import TrainingProgress
from training.commands.settings import DeviceSettings, RunSettings
from training.data.mnist import find_mnist, load_test
from training.paper.figure import draw_temperatures
from training.paper.reproduce import REPRODUCTION, reproduce
from training.recipe.files import read_recipe
from training.recipe.schema import FIGURES, Units
from training.runs.pipeline import DataSet


class Reproduce(RunSettings, DeviceSettings):
    """Reproduce the MNIST section of Hinton, Vinyals and Dean 2015.

    Trains, for every seed, the recipe's teacher and its student with and without distillation, narrower students at
    several temperatures, and students whose transfer set lacks classes. Models trained before are reused; the test
    digits are read once, when all models are trained.
    """

    examples: ClassVar[Sequence[str]] = (
        "distillery-train reproduce",
        "distillery-train reproduce --seeds 0 --units 30 --temperatures 1,4,20",
    )

    recipe: Annotated[str, Metavar("RECIPE")] = Field(
        "paper", description="recipe with a teacher and a student"
    )
    seeds: list[int] = Field([0, 1, 2, 3, 4], min_length=1, description="seeds to train")
    units: list[Units] = Field([30, 300], description="units per hidden layer of the narrower students")
    temperatures: list[PositiveFloat] = Field(
        [1, 2.5, 4, 8, 20], description="distillation temperatures of the narrower students"
    )

    def run(self) -> None:
        recipe = read_recipe(self.recipe)
        folder = find_mnist(self.data_dir)
        with TrainingProgress() as progress:
            result = reproduce(
                recipe,
                DataSet.of_mnist(folder),
                partial(load_test, folder),
                seeds=self.seeds,
                units=self.units,
                temperatures=self.temperatures,
                device=self.choose_device(),
                root=self.root,
                observer=progress,
            )
        figure = self.root / FIGURES / "temperatures.png"
        if result["temperatures"] and is_outdated(self.root / REPRODUCTION, figure):
            draw_temperatures(figure, result)
        Console().print(_table(result))


def _table(result: dict[str, Any]) -> Table:
    rows = dict(result["models"])
    for row in result["temperatures"]:
        setting = f"T = {row['temperature']:g}" if row["temperature"] else "control"
        rows[f"2 x {row['units']}, {setting}"] = row
    for name, transfer in result["transfer_sets"].items():
        for correction, row in transfer["corrections"].items():
            rows[f"{name}, bias: {correction}"] = row["errors"]
    table = Table(
        "model", "per seed", "mean", "95 %", title=f"errors on {result['test_digits']:,} test digits"
    )
    for name, row in rows.items():
        interval = "" if row["interval_95"] is None else f"± {row['interval_95']:.1f}"
        table.add_row(name, ", ".join(map(str, row["values"])), f"{row['mean']:.1f}", interval)
    return table
