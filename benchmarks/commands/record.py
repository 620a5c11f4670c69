"""`distillery-bench record`: keep the report of a training run as a result file, so that the docs can show it.

distillery-train reproduce && distillery-bench record --recipe paper
distillery-train report --recipe best && distillery-bench record --recipe best
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from benchmarks.commands.bench import Bench
from benchmarks.errors import BenchmarkError
from training.paper.reproduce import REPRODUCTION
from training.recipe.files import read_recipe
from training.recipe.inheritance import find_recipe
from training.report.report import REPORT
from training.runs.folder import current_folder
from training.runs.pipeline import jobs

FIGURES = ("errors", "errors_by_class", "confusion", "calibration", "fidelity", "robustness")


class Record(Bench):
    """Keep the report of a training run as a result file, for the docs.

    A run of `distillery-train reproduce` becomes a result of the kind reproduction, one of `distillery-train report` a
    result of the kind evidence.
    """

    examples = (
        "distillery-train reproduce && distillery-bench record --recipe paper",
        "distillery-train report --recipe best && distillery-bench record --recipe best",
    )

    recipe: str = Field("best", description="recipe of the run, as given to distillery-train")
    out: Path = Field(Path("runs"), description="folder of the runs")

    @property
    def run_dir(self) -> Path:
        """Folder of the run."""
        return self.out / find_recipe(self.recipe).stem

    @property
    def kind(self) -> str:
        return "reproduction" if (self.run_dir / REPRODUCTION).is_file() else "evidence"

    @property
    def template(self) -> str:
        return {"reproduction": "paper"}.get(self.kind, self.kind)

    def measure(self) -> dict[str, Any]:
        if self.kind == "reproduction":
            found: dict[str, Any] = json.loads((self.run_dir / REPRODUCTION).read_bytes())
            return found
        return evidence_of(self.run_dir, [job.name for job in jobs(read_recipe(self.recipe))])

    def summary(self, data: dict[str, Any]) -> dict[str, Any]:
        return {"models": list(data["models"])}


def evidence_of(root: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return the reports of the models in `root` by name, without recipes and lists of single digits.

    Raises `BenchmarkError` for a model without a report.
    """
    try:
        reports = {name: json.loads((current_folder(root, name) / REPORT).read_bytes()) for name in names}
    except FileNotFoundError as error:
        raise BenchmarkError(
            f"there is no {error.filename}; run distillery-train report, or distillery-train reproduce"
        ) from None
    return {
        "recipe": root.name,
        "corruptions": reports[names[0]]["corruptions"],
        "models": {name: _kept(report) for name, report in reports.items()},
    }


def _kept(report: dict[str, Any]) -> dict[str, Any]:
    metrics, row = report["metrics"], report["models"][report["name"]]
    return {
        "architecture": row["architecture"],
        "seed": row["seed"],
        "errors_over_seeds": row["errors_over_seeds"],
        "corrupted_accuracy": row["corrupted_accuracy"],
        **{name: metrics[name] for name in (*FIGURES, "robustness_digits", "digits")},
    }
