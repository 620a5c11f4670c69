"""`distillery-train sweep`: search the settings of a student, and say which of them matter."""

import importlib
import json

from pydantic import Field, PositiveFloat
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from distillery import DistilleryError
from training.commands.progress import SweepProgress, TrainingProgress
from training.commands.settings import RecipeCommand
from training.loop.device import choose_device
from training.recipe.schema import Recipe
from training.runs.folder import locked
from training.runs.pipeline import DataSet, train_recipe
from training.sweep.results import importances, write_results
from training.sweep.search import SWEEP, Result, Search, front, open_study, storage_errors
from training.sweep.space import Space


class Sweep(RecipeCommand):
    """Search temperature, alpha, loss, learning rate and width of a student of a recipe.

    Two things are to be small: errors on the validation digits, and multiply-adds, which a network's latency comes
    from. Every trial has the recipe's seed, so a few errors more or less are chance. Stopped in any way, the same
    command goes on from there; started several times, also on several machines with one --storage, the processes
    share the work. The student's teachers are trained once, and asked once. In the end, and for --trials that are
    done already, it writes trials.csv, sweep.json and heat_map.png into runs/<recipe>/sweep/<student>.

        distillery-train sweep --recipe best --model student --trials 50
        distillery-train sweep --student.epochs 5 --space.loss kl,dkd --space.hidden 256-128,48-32
        distillery-train sweep --timeout 3600 --storage postgresql+psycopg://user:password@host/name
        torchrun --nproc-per-node 4 -m training sweep --recipe best         four processes, a GPU for each
    """

    model: str = Field("student", description="the model of the recipe to search; it learns from another one")
    trials: int = Field(30, ge=1, description="finished trials to come to, those of other processes included")
    timeout: PositiveFloat | None = Field(None, description="begin no trial after so many seconds")
    storage: str | None = Field(
        None,
        description="URL of the database that Optuna keeps the trials in; sweep.db in --out if not given",
    )
    space: Space = Field(Space(), description="what is searched")

    def run(self) -> None:
        recipe = self.settled()
        self._check(recipe)
        device = choose_device(self.device, self.precision, threads=self.threads)
        data = DataSet.of_mnist(self.data_dir)
        root = self.out / recipe.name
        space = self.space.of(recipe.models[self.model])
        search = Search(recipe, self.model, space, data, device, root)
        url = self.storage or f"sqlite:///{self.out / 'sweep.db'}"
        with storage_errors(url):
            with locked(root / SWEEP, wait=True), TrainingProgress() as progress:
                study = open_study(url, search.name)
                runs = train_recipe(search.teachers, data, device=device, root=root, observer=progress)
            with SweepProgress() as progress:
                progress.counted("trials", len(search.results(study)), self.trials)
                finished = search.run(
                    study,
                    teacher=runs[search.soft.teacher],
                    trials=self.trials,
                    seconds=self.timeout,
                    observer=progress,
                )
                for result, done in finished:
                    progress.print(_line(result))
                    progress.counted("trials", done, self.trials)
            results, weights = search.results(study), importances(study)
        folder = root / SWEEP / self.model
        kept = write_results(folder, study.study_name, results, weights, space)
        console = Console()
        if weights:
            console.print(_importances(weights, len(results)))
        if results:
            best = front(results)
            console.print(_front(best))
            console.print(f"its first: {self._train_command(best[0])}", soft_wrap=True)
        console.print(f"{len(results)} trials in {folder}", soft_wrap=True)
        print(json.dumps(kept))

    def _check(self, recipe: Recipe) -> None:
        """Refuse what cannot be searched. Raises `DistilleryError`."""
        models = recipe.models.items()
        students = [name for name, model in models if model.distillation]
        if self.model not in students:
            found = "learns from no other model" if self.model in recipe.models else "is no model of it"
            raise DistilleryError(
                f"--model {self.model}: it {found}; recipe {recipe.name} has these to search: "
                f"{', '.join(students) or 'none, as no model has a distillation'}"
            )
        try:
            importlib.import_module("optuna")
        except ImportError:
            raise DistilleryError("distillery-train sweep needs optuna: pip install '.[sweep]'") from None

    def _train_command(self, result: Result) -> str:
        """Return the command that makes the trial's model the recipe's own; what is trained it uses again."""
        places = {"temperature": "distillation.", "alpha": "distillation.", "loss": "distillation."}
        settings = result.settings | {"hidden": result.settings["hidden"].replace("-", ",")}
        flags = {places.get(name, "") + name.replace("_", "-"): value for name, value in settings.items()}
        given = [f"--{self.model}.{name} {value}" for name, value in flags.items() if value != ""]
        return " ".join(["distillery-train --recipe", self.recipe, *given])


def _line(result: Result) -> str:
    settings = "  ".join(f"{name.replace('_', ' ')} {value}" for name, value in result.settings.items())
    return f"trial {result.number:>3}  {result.errors:>4} errors  {result.multiply_adds:>9,} multiply-adds  {settings}"


def _importances(weights: dict[str, float], trials: int) -> Table:
    table = Table("what decides errors", box=SIMPLE_HEAD)
    table.add_column(f"its share, by {trials} trials", justify="right")
    for name, weight in weights.items():
        table.add_row(name.replace("_", " "), f"{weight:.0%}")
    return table


def _front(results: list[Result]) -> Table:
    title = "beaten by no other in validation errors and multiply-adds"
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for heading in ("trial", "errors", "multiply-adds", *Space.model_fields):
        table.add_column(heading.replace("_", " "), justify="right")
    for result in results:
        figures = (str(result.number), str(result.errors), f"{result.multiply_adds:,}")
        table.add_row(*figures, *(str(result.settings[name]) for name in Space.model_fields))
    return table
