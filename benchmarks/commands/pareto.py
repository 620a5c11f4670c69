"""`distillery-bench pareto`: test errors against latency and file size, by width, precision and distillation.

Every network of the recipe and its control, in fp32 and int8, over several seeds: errors with their spread, the
difference to the control tested in pairs, file size, and latency in a session. Finished work is reused, so an
interrupted run continues.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import Field, PositiveFloat

from benchmarks.commands.seeds import SeedRun, SeedsBench, mean_of
from benchmarks.load.sessions import measure_sessions
from benchmarks.results.models import speed_models
from export.fold import fold
from export.graph import to_onnx
from training.evaluation.significance import paired_over_seeds
from training.model.network import build
from training.recipe.files import read_recipe
from training.recipe.schema import ALONE, Architecture

FLOOR = "floor"
BATCHES = (1, 64)
"""Images per run: what a single request costs, and a full batch."""


class Pareto(SeedsBench):
    """Measure test errors against latency and file size, over network widths.

    The recipe `best` with five seeds takes hours on 2 cores.
    """

    examples = (
        "distillery-bench pareto",
        "distillery-bench pareto --recipe quick --seeds 0",
    )

    recipe: str = Field("best", description="best, another recipe, or a TOML file")
    seeds: list[int] = Field([0, 1, 2, 3, 4], min_length=1, description="seeds to train the recipe with")
    teacher_seed: int | None = Field(
        0, ge=0, description="one seed for the teachers and views of all students"
    )
    seconds: PositiveFloat = Field(60, description="seconds for the sessions")

    def measure(self) -> dict[str, Any]:
        runs = [self.run_seed(seed) for seed in self.seeds]
        rows, floor = pareto_rows(runs, seconds=self.seconds)
        return {
            "recipe": Path(self.recipe).stem,
            "seeds": self.seeds,
            "teacher_seed": self.teacher_seed,
            "rows": rows,
            "floor": floor,
            "pairs": distilled_against_control(self.recipe, runs),
            "training_seconds": {
                name: [run.evaluation[name]["seconds"] for run in runs] for name in runs[0].evaluation
            },
        }

    def summary(self, data: dict[str, Any]) -> dict[str, Any]:
        kept = ("model", "mean", "interval_95", "size_bytes", "speedup_batch1")
        return {"rows": [{key: row[key] for key in kept} for row in data["rows"]]}


def pareto_rows(runs: Sequence[SeedRun], *, seconds: float) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a row per model, the fastest first: errors by seed, mean and 95 % interval, file size, latency.

    Also returns the latency of the floor, a network without hidden layers, most of which is the cost of any session.
    Latency does not depend on the weights, so the first seed's files are timed, one of each architecture and precision:
    a student and its control have the same latency.
    """
    manifests = runs[0].manifests
    paths = {
        name: runs[0].models_dir / name / each.version / "model.onnx" for name, each in manifests.items()
    }
    timed_as = speed_models({name: each.model_dump() for name, each in manifests.items()})
    measured = {name: paths[name] for name in dict.fromkeys(timed_as.values())}
    with TemporaryDirectory() as folder:
        measured[FLOOR] = _write_floor(Path(folder))
        timed = measure_sessions(measured, threads=[1], batches=BATCHES, seconds=seconds)["rows"]
    by_batch = {(row["model"], row["batch"]): row for row in timed}
    rows = []
    for name, manifest in manifests.items():
        # A teacher that all seeds share is one network and counts once.
        different = {run.manifests[name].checkpoint_sha256: run.manifests[name] for run in runs}
        errors = [each.test_errors for each in different.values()]
        rows.append(
            {
                "model": name,
                "architecture": manifest.architecture,
                "precision": manifest.precision,
                "distilled": manifest.recipe["teacher"] is not None,
                "parameters": manifest.parameters,
                "size_bytes": manifest.size_bytes,
                "errors": errors,
                **mean_of(errors),
                **_latency(by_batch, timed_as[name]),
            }
        )
    return sorted(rows, key=lambda row: row["p50_us_batch1"]), _latency(by_batch, FLOOR)


def _latency(timed: Mapping[tuple[str, int], Mapping[str, Any]], name: str) -> dict[str, Any]:
    return {
        f"{key}_batch{batch}": timed[name, batch][key]
        for key in ("p50_us", "speedup", "rounds_p50_us")
        for batch in BATCHES
    }


def _write_floor(folder: Path) -> Path:
    """Write the smallest network, 784-10, as a graph and return its path."""
    architecture, path = Architecture(), folder / "floor.onnx"
    path.write_bytes(to_onnx(fold(build(architecture))).content)
    return path


def distilled_against_control(recipe: str, runs: Sequence[SeedRun]) -> dict[str, Any]:
    """Return for every student with a control the errors that its teacher saved (`paired_over_seeds`)."""
    return {
        name: paired_over_seeds([(run.wrong(name + ALONE), run.wrong(name)) for run in runs])
        for name, model in read_recipe(recipe).models.items()
        if model.distillation and model.control
    }
