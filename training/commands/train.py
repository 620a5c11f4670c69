"""`distillery-train`: train the models of a recipe."""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from rich.console import Console

from training.commands.progress import TrainingProgress
from training.commands.settings import RecipeCommand
from training.data.views import Views
from training.distributed import on_rank_0, process_group, rank
from training.loop.device import choose_device
from training.loop.sanity import overfit_one_batch
from training.model.checkpoint import load_checkpoint
from training.recipe.schema import Recipe
from training.report.figures import FIGURES, draw_curves, draw_digits, draw_soft_targets
from training.runs.folder import ModelRun, read_history
from training.runs.pipeline import DataSet, jobs, train_recipe
from training.storage import is_outdated


class Train(RecipeCommand):
    """Train every model of a recipe: teachers, students, and for each student its control without a teacher.

    What the recipe's settings have trained before is used again; what was interrupted goes on from its last
    epoch, with the same result. The test digits are not read: `distillery-train evaluate` and `report` do that.
    Every field of every model in the recipe is a flag: --help lists those of the recipe that is given with it.

        distillery-train                                    the demo's recipe, about two minutes on 2 cores
        distillery-train --recipe notebook --seed 1
        distillery-train --recipe best --help
        distillery-train --student.hidden 256,128 --student.distillation.temperature 4 --out runs-small
        distillery-train --recipe best --seeds 1,2          and two more seeds
        distillery-train --recipe my.toml --sanity-check    first see whether each network can learn one batch
    """

    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [],
        description="train these seeds too, one after another; --seed stays the current one",
    )
    sanity_check: bool = Field(
        False, description="overfit one batch with every network, and train nothing else"
    )

    def run(self) -> None:
        recipe = self.settled()
        device = choose_device(self.device, self.precision, threads=self.threads)
        root = self.out / recipe.name
        with process_group(device.type):
            quiet = rank() > 0
            data = on_rank_0(lambda: DataSet.of_mnist(self.data_dir))
            with TrainingProgress(Console(quiet=quiet)) as progress:
                if self.sanity_check:
                    overfit_one_batch(jobs(recipe), data.training, device=device, observer=progress)
                    progress.print("every network can overfit one batch")
                    return
                runs = train_recipe(
                    recipe, data, device=device, root=root, observer=progress, seeds=self.seeds
                )
        if quiet:
            return
        pictures = root / FIGURES
        names = [pictures / f"{name}.png" for name in ("digits", "soft_targets", "curves")]
        if any(is_outdated(run.link, *names) for run in runs.values()):
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
