"""What is known of a recipe's models beyond their errors, kept as a result: `distillery-bench evidence`.

    distillery-bench evidence                    the recipe `best`, of which one seed has been trained
    distillery-bench evidence --recipe quick

All the work is that of `distillery-train report`, which writes the model cards and uses again what it knows.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from benchmarks.commands.seeds import run_stage
from benchmarks.results.files import RESULTS, write_result
from distillery import Command
from training.recipe.files import find_recipe, read_recipe
from training.report.report import REPORT
from training.runs.pipeline import jobs


class EvidenceBench(Command):
    """Keep what `distillery-train report` finds of a run: calibration, fidelity, robustness, errors by digit."""

    recipe: str = Field("best", description="the run, as it was given to distillery-train")
    out: Path = Field(Path("runs"), description="folder of the runs")
    threads: int | None = Field(None, gt=0, description="CPU threads; all usable cores if not given")
    data_dir: Path | None = Field(
        None, description="folder with the MNIST files, if not to be found or fetched"
    )
    results_dir: Path = Field(RESULTS, description="where the result is kept")

    def run(self) -> None:
        flags = [f"--recipe={self.recipe}", f"--out={self.out}"]
        flags += [f"--threads={self.threads}"] if self.threads else []
        flags += [f"--data-dir={self.data_dir}"] if self.data_dir else []
        run_stage("training", "report", *flags)
        root = self.out / find_recipe(self.recipe).stem
        names = [job.name for job in jobs(read_recipe(self.recipe))]
        path = write_result("evidence", evidence_of(root, names), folder=self.results_dir)
        print(json.dumps({"result": str(path)}))


def evidence_of(root: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return what the reports of the models in `root` say, by model, without recipes and lists of mistakes."""
    reports = {name: json.loads((root / name / REPORT).read_bytes()) for name in names}
    return {
        "recipe": root.name,
        "corruptions": reports[names[0]]["corruptions"],
        "models": {name: _kept(report) for name, report in reports.items()},
    }


def _kept(report: dict[str, Any]) -> dict[str, Any]:
    evidence, row = report["evidence"], report["models"][report["name"]]
    figures = ("errors", "errors_by_class", "confusion", "calibration", "fidelity", "robustness")
    return {
        "architecture": row["architecture"],
        "seed": row["seed"],
        "errors_over_seeds": row["errors_over_seeds"],
        "corrupted_accuracy": row["corrupted_accuracy"],
        **{name: evidence[name] for name in (*figures, "robustness_digits", "digits")},
    }
