"""`distillery-train evaluate`: count the test errors of a run's models."""

from functools import cache
from pathlib import Path

from pydantic import Field
from rich.console import Console
from rich.table import Table

import distillery
from training.data.mnist import find_mnist, load_test
from training.evaluation.evaluate import EVALUATION, evaluate_run
from training.recipe.files import find_recipe, read_recipe
from training.report.figures import (
    FIGURES,
    draw_confusion,
    draw_mistakes,
)
from training.runs.pipeline import jobs
from training.storage import is_outdated


class Evaluate(distillery.Command):
    """Count the errors of a run's models on the 10,000 test digits.

    Only this command and `report` read them; run it when every choice has been made.
    It writes evaluation.json and the pictures of the mistakes and the confusions into the run's folder.

        distillery-train evaluate --recipe notebook
    """

    recipe: str = Field("quick", description="the run to evaluate, as it was given to distillery-train")
    data_dir: Path | None = Field(
        None, description="folder with the MNIST files, if not to be found or fetched"
    )
    out: Path = Field(Path("runs"), description="folder of the runs")

    def run(self) -> None:
        root = self.out / find_recipe(self.recipe).stem
        read_test = cache(lambda: load_test(find_mnist(self.data_dir)))
        names = [job.name for job in jobs(read_recipe(self.recipe))]
        evaluation = evaluate_run(root, names, read_test)
        mistakes, confusion = (root / FIGURES / f"{name}.png" for name in ("mistakes", "confusion"))
        if is_outdated(root / EVALUATION, mistakes, confusion):
            draw_mistakes(mistakes, evaluation, read_test())
            draw_confusion(confusion, evaluation)
        count = sum(map(sum, evaluation[names[0]]["confusion"]))
        table = Table(title=f"{root}, {count:,} test digits")
        for heading in ("model", "parameters", "test errors", "accuracy", "validation errors", "training"):
            table.add_column(
                heading, justify="left" if heading == "model" else "right", no_wrap=heading == "model"
            )
        for name, model in evaluation.items():
            table.add_row(
                name,
                f"{model['parameters']:,}",
                str(model["errors"]),
                f"{model['accuracy']:.2%}",
                str(model["validation_errors"]),
                f"{model['seconds']:.0f} s",
            )
        Console().print(table)
