"""`distillery-train report`: model cards, figures and a table of a run's models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from distillery import Metavar
from distillery.files import is_outdated
from training.commands.progress import TrainingProgress
from training.commands.settings import DeviceSettings, RunSettings
from training.data.mnist import find_mnist, load_test
from training.evaluation.evaluate import METRICS, Evaluator
from training.recipe.files import read_recipe
from training.recipe.schema import FIGURES
from training.report.figures import draw_confusion, draw_errors, draw_reliability, draw_robustness
from training.report.model_card import interval
from training.report.report import report_run
from training.runs.folder import current_folder
from training.runs.pipeline import DataSet, jobs


class Report(RunSettings, DeviceSettings):
    """Write a model card for every model of a run, measured on the test digits.

    MODEL_CARD.md and report.json in each model's folder: errors over all trained seeds, the student against its
    control, calibration, fidelity to the teacher, robustness to corrupted digits; figures in the run's folder. Metrics
    are kept: the test digits are read again only for new models. The device is used for the corrupted digits.
    """

    examples: ClassVar[Sequence[str]] = (
        "distillery-train report --recipe notebook",
        "distillery-train report --recipe best --seeds 0,1,2 --robustness-digits 2000",
    )

    seeds: list[int] | None = Field(
        None, min_length=1, description="trainings whose errors are counted; default: all"
    )
    robustness_digits: Annotated[int | None, Metavar("N")] = Field(
        None, gt=0, description="test digits to corrupt, 35 times each; default: all"
    )

    def run(self) -> None:
        names = [job.name for job in jobs(read_recipe(self.recipe))]
        with TrainingProgress() as progress:
            evaluator = Evaluator(
                lambda: load_test(find_mnist(self.data_dir)),
                lambda: DataSet.of_mnist(self.data_dir),
                device=self.choose_device(),
                robustness_digits=self.robustness_digits,
                on_step=progress.counted,
            )
            reports = report_run(self.root, names, evaluator, seeds=self.seeds)
        self._draw_figures({name: report["metrics"] for name, report in reports.items()}, evaluator)
        Console().print(_table(self.root, reports))
        progress.print(f"model cards in {self.root}/*/MODEL_CARD.md, figures in {self.root / FIGURES}")

    def _draw_figures(self, metrics: Mapping[str, Mapping[str, Any]], evaluator: Evaluator) -> None:
        names = ("errors", "confusion", "reliability", "robustness")
        figures = [self.root / FIGURES / f"{name}.png" for name in names]
        links = [self.root / name for name in metrics]
        sources = [*links, *(current_folder(self.root, name) / METRICS for name in metrics)]
        if any(is_outdated(source, *figures) for source in sources):
            errors, confusion, reliability, robustness = figures
            draw_errors(errors, metrics, evaluator.test)
            draw_confusion(confusion, metrics)
            draw_reliability(reliability, metrics)
            draw_robustness(robustness, metrics)


def _table(root: Path, reports: Mapping[str, Mapping[str, Any]]) -> Table:
    digits = next(iter(reports.values()))["metrics"]["digits"]["test"]
    table = Table(title=f"{root}, {digits:,} test digits; ± 95 % over seeds", box=SIMPLE_HEAD)
    table.add_column("model", no_wrap=True)
    for heading in ("errors", "mean (seeds)", "saved", "agreement", "ECE, with temperature", "corrupted"):
        table.add_column(heading, justify="right")
    for name, report in reports.items():
        headline, row = report["headline"], report["models"][name]
        saved, seeds = report["saved_by_distillation"], row["errors_over_seeds"]
        table.add_row(
            name,
            f"{row['errors']:,}",
            f"{interval(seeds)} ({', '.join(map(str, seeds['seeds']))})",
            interval(saved) if saved else "",
            f"{row['fidelity']['agreement']:.2%}" if row["fidelity"] else "",
            f"{headline['ece']:.2%}, {headline['ece_calibrated']:.2%}",
            f"{row['corrupted_accuracy']:.1%}",
        )
    return table
