"""`distillery-train evaluate`: count the test errors of a run's models."""

from collections.abc import Sequence
from typing import ClassVar

from rich.console import Console
from rich.table import Table

from distillery.files import is_outdated
from training.commands.settings import RunSettings
from training.data.mnist import find_mnist, load_test
from training.evaluation.evaluate import EVALUATION, Evaluator, evaluate_run
from training.loop.device import Device
from training.recipe.files import read_recipe
from training.recipe.schema import FIGURES
from training.report.figures import draw_confusion, draw_errors
from training.runs.pipeline import DataSet, jobs


class Evaluate(RunSettings):
    """Count the errors of a run's models on the 10,000 test digits.

    Writes evaluation.json and figures of the errors and the confusion matrices to the run's folder. Only this command,
    `report` and `reproduce` read the test digits: run it after all choices are made.
    """

    examples: ClassVar[Sequence[str]] = ("distillery-train evaluate --recipe notebook",)

    def run(self) -> None:
        names = [job.name for job in jobs(read_recipe(self.recipe))]
        evaluator = Evaluator(
            lambda: load_test(find_mnist(self.data_dir)),
            lambda: DataSet.of_mnist(self.data_dir),
            device=Device("cpu", bfloat16=False),
        )
        evaluation = evaluate_run(self.root, names, evaluator)
        errors, confusion = (self.root / FIGURES / f"{name}.png" for name in ("errors", "confusion"))
        if is_outdated(self.root / EVALUATION, errors, confusion):
            draw_errors(errors, evaluation, evaluator.test)
            draw_confusion(confusion, evaluation)
        digits = sum(map(sum, evaluation[names[0]]["confusion"]))
        table = Table(title=f"{self.root}, {digits:,} test digits")
        table.add_column("model", no_wrap=True)
        for heading in ("parameters", "test errors", "accuracy", "validation errors", "training"):
            table.add_column(heading, justify="right")
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
