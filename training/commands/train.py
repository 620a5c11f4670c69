"""`distillery-train`: train the models of a recipe."""

from collections.abc import Sequence
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat
from rich.console import Console

from distillery import Metavar
from distillery.files import is_outdated
from training.commands.progress import TrainingProgress
from training.commands.settings import RecipeSettings
from training.data.views import Views
from training.distributed import on_rank_0, process_group, rank
from training.loop.device import Device
from training.loop.sanity import overfit_one_batch
from training.model.checkpoint import load_checkpoint
from training.recipe.schema import FIGURES, Recipe
from training.report.figures import draw_curves, draw_digits, draw_soft_targets
from training.runs.folder import ModelRun, read_history
from training.runs.pipeline import REVISION, DataSet, jobs, train_recipe


class Train(RecipeSettings):
    """Train the models of a recipe: teachers, students and their controls.

    A control is a student trained without its teacher. Models trained before with the same settings are reused; an
    interrupted training resumes after its last epoch and gives the same result. The test digits are not read;
    `evaluate` and `report` do that. With a request log, test images are read to remove them from it.

    Every setting of every model is an option; --help lists those of the given recipe.
    """

    examples: ClassVar[Sequence[str]] = (
        "distillery-train                                   # the recipe quick",
        "distillery-train --recipe notebook --seed 1",
        "distillery-train --recipe best --seeds 1,2         # three seeds",
        "distillery-train --recipe recipe.toml --sanity-check  # can it learn?",
        "distillery-train --student.hidden 256,128 --out runs-small",
        "distillery-train --models fast --request-log log  # real inputs, too",
        "torchrun --nproc-per-node 2 -m training --recipe best",
    )

    request_log: Annotated[Path | None, Metavar("DIR")] = Field(
        None, description="request log of a service, which students learn from besides MNIST"
    )
    models: Annotated[list[str], Metavar("MODEL,...")] = Field(
        [], description="train only these models of the recipe, and the teachers they need"
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [], description="further seeds to train, one after another; --seed remains the current one"
    )
    sanity_check: bool = Field(
        False, description="only overfit one batch with every network, to see whether it learns at all"
    )

    peer_timeout: Annotated[PositiveFloat, Metavar("SECONDS")] = Field(
        600, description="with torchrun: end when another process does not respond for this time"
    )

    def run(self) -> None:
        recipe, device = self.resolved().only(self.models), self.choose_device()
        timeout = timedelta(seconds=self.peer_timeout)
        with process_group(device.type, self._decisive(recipe, device), timeout=timeout):
            quiet = rank() > 0
            data = on_rank_0(lambda: DataSet.of_mnist(self.data_dir, self.request_log))
            with TrainingProgress(Console(quiet=quiet)) as progress:
                if data.log:
                    progress.print(f"{self.request_log}: {data.log.counts}")
                if self.sanity_check:
                    overfit_one_batch(jobs(recipe), data.training, device=device, observer=progress)
                    progress.print("every network overfits one batch")
                    return
                runs = train_recipe(
                    recipe, data, device=device, root=self.root, observer=progress, seeds=self.seeds
                )
        if quiet:
            return
        self._draw_figures(recipe, data, runs)
        progress.print(f"models in {self.root}, figures in {self.root / FIGURES}")

    def _decisive(self, recipe: Recipe, device: Device) -> dict[str, object]:
        """Return what must be equal in all processes, by the names of options."""
        return {
            "recipe": recipe.name,
            "seed": recipe.seed,
            "teacher-seed": recipe.teacher_seed,
            "seeds": self.seeds,
            "models": self.models,
            "sanity-check": self.sanity_check,
            "device": device.type,
            "precision": "bfloat16" if device.bfloat16 else "float32",
            "version of torch": version("torch").partition("+")[0],
            "revision of the training": REVISION,
            **recipe.model_dump()["models"],
        }

    def _draw_figures(self, recipe: Recipe, data: DataSet, runs: dict[str, ModelRun]) -> None:
        figures = [self.root / FIGURES / f"{name}.png" for name in ("digits", "soft_targets", "curves")]
        if not any(is_outdated(run.link, *figures) for run in runs.values()):
            return
        digits, soft_targets, curves = figures
        first = next(iter(recipe.models))
        views = Views(data.training.images, recipe.models[first], recipe.seed)
        draw_digits(digits, data.training, {first: views})
        draw_soft_targets(soft_targets, load_checkpoint(runs[first].checkpoint).network, data.validation)
        histories = {name: read_history(run.folder) for name, run in runs.items()}
        draw_curves(curves, histories, distilled=[job.name for job in jobs(recipe) if job.distillation])
