"""`distillery-train reproduce`: the paper's MNIST experiments over several seeds."""

from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat
from rich.console import Console
from rich.table import Table

import distillery
from training.commands.progress import TrainingProgress
from training.data.mnist import find_mnist, load_test
from training.loop.device import DeviceName, Precision, choose_device
from training.paper.figure import draw_temperatures
from training.paper.reproduce import REPRODUCTION, reproduce
from training.recipe.files import read_recipe
from training.recipe.schema import Units
from training.report.figures import FIGURES
from training.runs.pipeline import DataSet
from training.storage import is_outdated


class Reproduce(distillery.Command):
    """Reproduce the MNIST section of the paper: 67, 146 and 74 errors, temperatures, transfer sets without a class.

    What has been trained before is used again, and the test digits are read once, when everything is trained.

        distillery-train reproduce
        distillery-train reproduce --seeds 0 --units 30 --temperatures 1,4,20
    """

    recipe: str = Field("paper", description="a recipe with a teacher and a student")
    seeds: list[int] = Field([0, 1, 2, 3, 4], min_length=1, description="one training of everything each")
    units: list[Units] = Field([30, 300], description="of each hidden layer of the narrower students")
    temperatures: list[PositiveFloat] = Field([1, 2.5, 4, 8, 20], description="that these are distilled at")
    data_dir: Path | None = Field(
        None, description="folder with the MNIST files, if not to be found or fetched"
    )
    out: Path = Field(Path("runs"), description="folder for runs")
    device: DeviceName = Field("auto", description="auto takes CUDA where there is one")
    precision: Precision = Field(
        "auto", description="of matrix products; auto takes bfloat16 where it is quick"
    )
    threads: int | None = Field(None, gt=0, description="CPU threads; all usable cores if not given")

    def run(self) -> None:
        recipe = read_recipe(self.recipe)
        folder, root = find_mnist(self.data_dir), self.out / recipe.name
        with TrainingProgress() as progress:
            result = reproduce(
                recipe,
                DataSet.of_mnist(folder),
                partial(load_test, folder),
                seeds=self.seeds,
                units=self.units,
                temperatures=self.temperatures,
                device=choose_device(self.device, self.precision, threads=self.threads),
                root=root,
                observer=progress,
            )
        picture = root / FIGURES / "temperatures.png"
        if result["temperatures"] and is_outdated(root / REPRODUCTION, picture):
            draw_temperatures(picture, result)
        Console().print(_table(result))


def _table(result: dict[str, Any]) -> Table:
    rows = dict(result["models"])
    for row in result["temperatures"]:
        rows[f"2 x {row['units']}, " + (f"T = {row['temperature']:g}" if row["temperature"] else "alone")] = (
            row
        )
    for name, transfer in result["transfer_sets"].items():
        rows |= {f"{name}, bias: {way}": row["errors"] for way, row in transfer["corrections"].items()}
    table = Table(
        "model", "each seed", "mean", "95 %", title=f"errors on {result['test_digits']:,} test digits"
    )
    for name, row in rows.items():
        interval = "" if row["interval_95"] is None else f"± {row['interval_95']:.1f}"
        table.add_row(name, ", ".join(map(str, row["values"])), f"{row['mean']:.1f}", interval)
    return table
