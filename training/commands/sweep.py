"""`distillery-train sweep`: search the settings of a student, and estimate which of them matter."""

import importlib
import json
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from distillery import DistilleryError, Metavar, unknown
from training.commands.progress import SweepProgress, TrainingProgress
from training.commands.settings import RecipeSettings
from training.recipe.schema import SWEEP, Recipe
from training.runs.lock import locked
from training.runs.pipeline import DataSet, train_recipe
from training.sweep.results import importances, write_results
from training.sweep.search import Result, Search, pareto_front
from training.sweep.space import Space
from training.sweep.storage import open_study, storage_errors


class Sweep(RecipeSettings):
    """Search temperature, alpha, loss, learning rate and hidden layers of a student.

    Two objectives are minimised: validation errors and multiply-adds, which determine a network's latency. All trials
    have the recipe's seed, so differences of a few errors are chance. An interrupted sweep resumes with the same
    command; several processes, also on several machines with one --storage, share the trials. Teachers are trained
    once, and their logits computed once. Writes trials.csv, sweep.json and heat_map.png to
    runs/RECIPE/sweep/STUDENT.
    """

    examples: ClassVar[Sequence[str]] = (
        "distillery-train sweep --recipe best --model student --trials 50",
        "distillery-train sweep --space.loss kl,dkd --space.hidden 256-128,48-32",
        "distillery-train sweep --storage postgresql+psycopg://user@host/name",
        "torchrun --nproc-per-node 4 -m training sweep --recipe best  # 4 GPUs",
    )

    model: Annotated[str, Metavar("STUDENT")] = Field(
        "student", description="model of the recipe to search; it must learn from another model"
    )
    trials: int = Field(30, ge=1, description="finished trials to reach, including those of other processes")
    timeout: Annotated[PositiveFloat | None, Metavar("SECONDS")] = Field(
        None, description="start no trial after this time"
    )
    storage: Annotated[SecretStr | None, Metavar("URL")] = Field(
        None, description="database of the Optuna study; default: sweep.db in --out"
    )
    heartbeat: Annotated[PositiveInt, Metavar("SECONDS")] = Field(
        30, description="heartbeat interval of running trials; after three missed, the trial is repeated"
    )
    space: Space = Field(Space(), description="ranges to search")

    def run(self) -> None:
        recipe = self.resolved()
        self._check(recipe)
        device, data = self.choose_device(), DataSet.of_mnist(self.data_dir)
        space = self.space.of(recipe.models[self.model])
        search = Search(recipe, self.model, space, data, device, self.root)
        url = self.storage.get_secret_value() if self.storage else f"sqlite:///{self.out / 'sweep.db'}"
        with storage_errors(url):
            with locked(self.root / SWEEP, wait=True), TrainingProgress() as progress:
                shared = open_study(url, search.name, heartbeat=self.heartbeat)
                study = shared.study
                runs = train_recipe(search.teachers, data, device=device, root=self.root, observer=progress)
            with SweepProgress() as progress:
                done = shared.retry(lambda: search.results(study))
                progress.counted("trials", len(done), self.trials)
                finished = search.run(
                    shared,
                    teacher=runs[search.distillation.teacher],
                    trials=self.trials,
                    seconds=self.timeout,
                    observer=progress,
                )
                for result, count in finished:
                    progress.print(_line(result))
                    progress.counted("trials", count, self.trials)
            results, shares = shared.retry(lambda: (search.results(study), importances(study)))
        folder = self.root / SWEEP / self.model
        summary = write_results(folder, study.study_name, results, shares, space)
        console = Console()
        if shares:
            console.print(_importances(shares, len(results)))
        if results:
            front = pareto_front(results)
            console.print(_front(front))
            console.print(f"fewest errors: {self._train_command(front[0])}", soft_wrap=True)
        console.print(f"{len(results)} trials in {folder}", soft_wrap=True)
        print(json.dumps(summary))

    def _check(self, recipe: Recipe) -> None:
        """Raise `DistilleryError` for a model that cannot be searched, and without Optuna."""
        students = [name for name, model in recipe.models.items() if model.distillation]
        if self.model not in recipe.models:
            raise DistilleryError(f"--model: {unknown('student', self.model, students)}")
        if self.model not in students:
            raise DistilleryError(
                f"--model {self.model}: must be a model with a distillation: {', '.join(students) or 'there is none'}"
            )
        try:
            importlib.import_module("optuna")
        except ImportError:
            raise DistilleryError("distillery-train sweep requires optuna: pip install '.[sweep]'") from None

    def _train_command(self, result: Result) -> str:
        """Return the command that trains the trial's model as the recipe's own; it reuses the trained one."""
        settings = result.settings | {"hidden": result.settings["hidden"].replace("-", ",")}
        nested = ("temperature", "alpha", "loss")
        options = {
            ("distillation." if name in nested else "") + name.replace("_", "-"): value
            for name, value in settings.items()
        }
        given = [f"--{self.model}.{name} {value}" for name, value in options.items() if value != ""]
        return " ".join(["distillery-train --recipe", self.recipe, *given])


def _line(result: Result) -> str:
    settings = "  ".join(f"{name.replace('_', ' ')} {value}" for name, value in result.settings.items())
    return f"trial {result.number:>3}  {result.errors:>4} errors  {result.multiply_adds:>9,} multiply-adds  {settings}"


def _importances(shares: dict[str, float], trials: int) -> Table:
    table = Table("setting", box=SIMPLE_HEAD)
    table.add_column(f"importance for errors, {trials} trials", justify="right")
    for name, share in shares.items():
        table.add_row(name.replace("_", " "), f"{share:.0%}")
    return table


def _front(results: list[Result]) -> Table:
    title = "Pareto front of validation errors and multiply-adds"
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for heading in ("trial", "errors", "multiply-adds", *Space.model_fields):
        table.add_column(heading.replace("_", " "), justify="right")
    for result in results:
        objectives = (str(result.number), str(result.errors), f"{result.multiply_adds:,}")
        table.add_row(*objectives, *(str(result.settings[name]) for name in Space.model_fields))
    return table
