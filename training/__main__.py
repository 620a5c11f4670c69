"""Train the models of a recipe, count their errors, report: `distillery-train` or `python -m training`."""

import sys
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field
from rich.console import Console
from rich.table import Table

import distillery
from training.commands.progress import TrainingProgress
from training.commands.report import Report
from training.commands.settings import PICTURES, RecipeCommand
from training.commands.sweep import Sweep
from training.data.mnist import find_mnist, load_test
from training.data.views import Views
from training.evaluation.evaluation import EVALUATION, evaluate_run
from training.loop.collective import rank
from training.loop.device import choose_device
from training.loop.distributed import follow, lead
from training.loop.sanity import overfit_one_batch
from training.model.checkpoint import load_checkpoint
from training.model.files import older_than
from training.paper.reproduce import Reproduce
from training.recipe.recipe import Recipe, find_recipe, read_recipe
from training.report.figures import draw_confusion, draw_curves, draw_digits, draw_mistakes, draw_soft_targets
from training.runs.folder import ModelRun, read_history
from training.runs.pipeline import DataSet, jobs, train_recipe


class Train(RecipeCommand):
    """Train every model of a recipe: teachers, students, and for each student its control without a teacher.

    What the recipe's settings have trained before is used again; what was interrupted goes on from its last
    epoch, with the same result. The test digits are not read: `distillery-train evaluate` and `report` do that.
    Every field of every model in the recipe is a flag: --help lists those of the recipe that is given with it.

        distillery-train                                    the demo's recipe, about two minutes on 2 cores
        distillery-train --recipe notebook --seed 1
        distillery-train --recipe best --help
        distillery-train --student.hidden 256,128 --student.distillation.temperature 4 --out runs-small
        distillery-train --recipe best --seeds 1,2          and two seeds more, small models of all at once
        distillery-train --recipe my.toml --sanity-check    first see whether each network can learn one batch
    """

    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [],
        description="train these as well: small models of several seeds at once; --seed stays the current one",
    )
    sanity_check: bool = Field(
        False, description="overfit one batch with every network, and train nothing else"
    )

    def run(self) -> None:
        recipe = self.settled()
        device = choose_device(self.device, self.precision, threads=self.threads)
        if rank():  # of several processes the first leads; a sanity check it does alone
            if not self.sanity_check:
                follow(device)
            return
        data = DataSet.of_mnist(self.data_dir)
        with TrainingProgress() as progress:
            if self.sanity_check:
                overfit_one_batch(jobs(recipe), data.training, device=device, observer=progress)
                progress.console.print("every network learns one batch by heart")
                return
            root = self.out / recipe.name
            with lead(device, data.training, data.validation):
                runs = train_recipe(
                    recipe, data, device=device, root=root, observer=progress, seeds=self.seeds
                )
        pictures = root / PICTURES
        names = [pictures / f"{name}.png" for name in ("digits", "soft_targets", "curves")]
        if any(older_than(run.link, *names) for run in runs.values()):
            self._draw(recipe, data, runs, *names)
        progress.console.print(f"models in {root}, pictures in {pictures}", soft_wrap=True)

    def _draw(
        self,
        recipe: Recipe,
        data: DataSet,
        runs: dict[str, ModelRun],
        digits: Path,
        soft_targets: Path,
        curves: Path,
    ) -> None:
        first = next(iter(recipe.models))
        seen = Views(data.training.images, recipe.models[first], recipe.seed)
        draw_digits(digits, data.training, {first: seen})
        draw_soft_targets(soft_targets, load_checkpoint(runs[first].checkpoint).network, data.validation)
        histories = {name: read_history(run.folder) for name, run in runs.items()}
        draw_curves(curves, histories, distilled=[job.name for job in jobs(recipe) if job.distillation])


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
        mistakes, confusion = (root / PICTURES / f"{name}.png" for name in ("mistakes", "confusion"))
        if older_than(root / EVALUATION, mistakes, confusion):
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


def run() -> None:
    """Entry point of `distillery-train`."""
    commands: dict[str, type[distillery.Command]] = {
        "train": Train,
        "evaluate": Evaluate,
        "report": Report,
        "reproduce": Reproduce,
        "sweep": Sweep,
    }
    sys.exit(distillery.main("distillery-train", commands, default="train"))


if __name__ == "__main__":
    run()
