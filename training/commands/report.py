"""`distillery-train report`: what is known of a run's models, as files, pictures, and a table."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import distillery
from training.data.mnist import find_mnist, load_test
from training.evaluation.evaluate import EVIDENCE, Examination
from training.loop.device import DeviceName, Precision, choose_device
from training.recipe.files import find_recipe, read_recipe
from training.report.card_results import interval, listed
from training.report.figures import FIGURES, draw_confusion, draw_mistakes, draw_reliability, draw_robustness
from training.report.report import report_run
from training.runs.pipeline import DataSet, jobs
from training.storage import is_outdated


class Report(distillery.Command):
    """Write a model card for every model of a run, with all that is known of it, measured on the test digits.

    MODEL_CARD.md and report.json go into each model's folder, pictures beside them: errors over all the seeds that
    were trained, the student against its control, calibration, fidelity to the teacher, corrupted digits. What was
    measured is kept: the test digits are read again only for models that are new.

        distillery-train report --recipe notebook
        distillery-train report --recipe best --seeds 0,1,2 --robustness-digits 2000
    """

    recipe: str = Field("quick", description="the run to report, as it was given to distillery-train")
    seeds: list[int] | None = Field(
        None, min_length=1, description="trainings whose errors count; all there are if not given"
    )
    data_dir: Path | None = Field(
        None, description="folder with the MNIST files, if not to be found or fetched"
    )
    out: Path = Field(Path("runs"), description="folder of the runs")
    robustness_digits: int | None = Field(
        None, gt=0, description="test digits to corrupt, 35 times each; all if not given"
    )
    device: DeviceName = Field(
        "auto", description="for the corrupted digits; auto takes CUDA if there is one"
    )
    precision: Precision = Field("auto", description="of matrix products, for the corrupted digits")
    threads: int | None = Field(None, gt=0, description="CPU threads; all usable cores if not given")

    def run(self) -> None:
        root = self.out / find_recipe(self.recipe).stem
        names = [job.name for job in jobs(read_recipe(self.recipe))]
        device = choose_device(self.device, self.precision, threads=self.threads)
        with _progress() as progress:
            examination = Examination(
                cache(lambda: load_test(find_mnist(self.data_dir))),
                lambda: DataSet.of_mnist(self.data_dir),
                device=device,
                robustness_digits=self.robustness_digits,
                progress=progress,
            )
            reports = report_run(root, names, examination, seeds=self.seeds)
        self._draw(root, {name: report["evidence"] for name, report in reports.items()}, examination)
        console = Console()
        console.print(_table(root, reports))
        console.print(
            f"model cards in {root}/*/MODEL_CARD.md, pictures in {root / 'pictures'}", soft_wrap=True
        )

    def _draw(self, root: Path, evidence: Mapping[str, Mapping[str, Any]], examination: Examination) -> None:
        names = ("mistakes", "confusion", "reliability", "robustness")
        mistakes, confusion, reliability, robustness = made = [
            root / FIGURES / f"{name}.png" for name in names
        ]
        sources = [path for name in evidence for path in (root / name, root / name / EVIDENCE)]
        if any(is_outdated(source, *made) for source in sources):
            draw_mistakes(mistakes, evidence, examination.test)
            draw_confusion(confusion, evidence)
            draw_reliability(reliability, evidence)
            draw_robustness(robustness, evidence)


def _progress() -> Progress:
    console = Console()
    columns = (TextColumn("{task.description:<32}"), BarColumn(), TimeRemainingColumn(compact=True))
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _table(root: Path, reports: Mapping[str, Mapping[str, Any]]) -> Table:
    digits = next(iter(reports.values()))["evidence"]["digits"]["test"]
    table = Table(title=f"{root}, {digits:,} test digits; ± 95 % over seeds")
    table.add_column("model", no_wrap=True)
    headings = ("errors", "mean of seeds", "saved", "agreement", "ECE, with temperature", "corrupted")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, report in reports.items():
        headline, row = report["headline"], report["models"][name]
        saved, seeds = report["saved_by_distillation"], row["errors_over_seeds"]
        table.add_row(
            name,
            f"{row['errors']:,}",
            f"{interval(seeds)} ({listed(seeds['seeds'])})",
            interval(saved) if saved else "",
            f"{row['fidelity']['agreement']:.2%}" if row["fidelity"] else "",
            f"{headline['ece']:.2%}, {headline['ece_calibrated']:.2%}",
            f"{row['corrupted_accuracy']:.1%}",
        )
    return table
