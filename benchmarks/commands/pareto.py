"""What each part of the way brings, in test errors and in speed: `distillery-bench pareto`.

    distillery-bench pareto                          the recipe `best`, five seeds (hours on 2 cores)
    distillery-bench pareto --recipe quick --seeds 0

Every network of the recipe and its control, in fp32 and int8, over several seeds: errors with their spread, the
difference to the control tested in pairs, bytes of the file, and the time of a session. What is trained already is
used again, so an interrupted run goes on.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import Field, PositiveFloat
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.commands.seeds import SeedRun, SeedsBench
from benchmarks.load.sessions import REFERENCE, measure_sessions
from benchmarks.results.files import warn_if_busy, write_result
from export.graph import to_onnx
from training.evaluation.significance import mean_interval, paired_over_seeds
from training.model.network import build
from training.recipe.files import read_recipe
from training.recipe.schema import ALONE, Architecture

FLOOR = "floor"


class ParetoBench(SeedsBench):
    """Errors against session latency and bytes: widths × precision × with and without distillation.

    Prints a table and, last, one line of JSON; keeps everything in a file under --results-dir.
    """

    recipe: str = Field("best", description="best, another recipe, or a TOML file")
    seeds: list[int] = Field([0, 1, 2, 3, 4], min_length=1, description="one training of all each")
    teacher_seed: int | None = Field(
        0, ge=0, description="seed of the teachers and views that all students share"
    )
    seconds: PositiveFloat = Field(60, description="time for the sessions")

    def run(self) -> None:
        runs = [self.run_seed(seed) for seed in self.seeds]
        warn_if_busy()
        rows, floor = pareto_rows(runs, seconds=self.seconds)
        data: dict[str, Any] = {
            "recipe": Path(self.recipe).stem,
            "seeds": self.seeds,
            "teacher_seed": self.teacher_seed,
            "rows": rows,
            "floor": floor,
            "pairs": distilled_against_alone(self.recipe, runs),
            "training_seconds": {
                name: [run.evaluation[name]["seconds"] for run in runs] for name in runs[0].evaluation
            },
        }
        path = write_result("pareto", data, folder=self.results_dir)
        Console().print(_table(data["rows"]))
        kept = ("model", "mean", "interval_95", "size_bytes", "speedup_batch1")
        print(json.dumps({"result": str(path), "rows": [{k: row[k] for k in kept} for row in data["rows"]]}))


def pareto_rows(runs: Sequence[SeedRun], *, seconds: float) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One row a model: errors of every seed, mean and 95 % interval, bytes, session time; the fastest first.

    And the times of the floor, a network without hidden layers: mostly what any session costs.

    A session's time does not depend on the seed, so the first seed's files are timed: one image (what one request
    costs) and 64 (what a full batch costs), one thread, in turns.
    """
    manifests = runs[0].manifests
    paths = {
        name: runs[0].models_dir / name / each.version / "model.onnx" for name, each in manifests.items()
    }
    with TemporaryDirectory() as folder:
        paths |= {FLOOR: _write_floor(Path(folder))}
        timed = measure_sessions(paths, threads=[1], batches=[1, 64], rounds=5, seconds=seconds)["rows"]
    by_batch = {(row["model"], row["batch"]): row for row in timed}
    rows = []
    for name, manifest in manifests.items():
        # A teacher that all seeds share is one network, and counts once.
        different = {run.manifests[name].checkpoint_sha256: run.manifests[name] for run in runs}
        errors = [each.test_errors for each in different.values()]
        mean, interval = mean_interval(errors)
        rows.append(
            {
                "model": name,
                "architecture": manifest.architecture,
                "precision": manifest.precision,
                "distilled": manifest.recipe["teacher"] is not None,
                "parameters": manifest.parameters,
                "size_bytes": manifest.size_bytes,
                "errors": errors,
                "mean": round(mean, 2),
                "interval_95": None if interval is None else round(interval, 2),
                **_times(by_batch, name),
            }
        )
    return sorted(rows, key=lambda row: row["p50_us_batch1"]), _times(by_batch, FLOOR)


def _times(timed: Mapping[tuple[str, int], Mapping[str, Any]], name: str) -> dict[str, Any]:
    return {
        f"{key}_batch{batch}": timed[name, batch][key] for key in ("p50_us", "speedup") for batch in (1, 64)
    }


def _write_floor(folder: Path) -> Path:
    """Write the smallest graph that answers at all, 784-10, and return its path."""
    architecture, path = Architecture(), folder / "floor.onnx"
    path.write_bytes(to_onnx(build(architecture).eval(), architecture).content)
    return path


def distilled_against_alone(recipe: str, runs: Sequence[SeedRun]) -> dict[str, Any]:
    """For every student with a control: errors saved by its teacher, tested in pairs (`paired_over_seeds`)."""
    return {
        name: paired_over_seeds([(run.wrong(name + ALONE), run.wrong(name)) for run in runs])
        for name, model in read_recipe(recipe).models.items()
        if model.distillation and model.control
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        title=f"errors of 10,000 and session time against {REFERENCE}", box=SIMPLE_HEAD, title_justify="left"
    )
    for name in ("model", "layers", "errors", "mean", "±", "bytes", "p50 µs", "×", "× at 64"):
        table.add_column(name, justify="left" if name in {"model", "layers"} else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["model"],
            row["architecture"],
            " ".join(map(str, row["errors"])),
            f"{row['mean']:.1f}",
            "" if row["interval_95"] is None else f"{row['interval_95']:.1f}",
            f"{row['size_bytes']:,}",
            f"{row['p50_us_batch1']:.1f}",
            *(f"{row[key]:.1f}" if row[key] else "" for key in ("speedup_batch1", "speedup_batch64")),
        )
    return table
