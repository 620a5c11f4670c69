"""`distillery-bench session`: measure the models of a repository in onnxruntime alone, print and keep it."""

import json
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.load.sessions import measure_sessions
from benchmarks.results.files import RESULTS, warn_if_busy, write_result
from benchmarks.results.models import model_facts, select_models
from distillery import Command


class SessionBench(Command):
    """Measure the models by themselves: onnxruntime, model by threads by batch.

    Prints a table and, last, one line of JSON; keeps everything in a file under --results-dir.
    """

    models_dir: Path = Field(Path("models"), description="the model repository")
    models: list[str] = Field([], description="models to measure, all of them by default")
    threads: list[PositiveInt] = Field([1], description="intra-op threads of a session")
    batches: list[PositiveInt] = Field([1, 64], description="images in a run")
    rounds: PositiveInt = Field(5, description="how often each model has its turn")
    seconds: PositiveFloat = Field(20.0, description="time for all of it")
    results_dir: Path = Field(RESULTS, description="where the result is kept")

    def run(self) -> None:
        warn_if_busy()
        entries = select_models(self.models_dir, self.models)
        data = measure_sessions(
            {name: entry.path for name, entry in entries.items()},
            threads=self.threads,
            batches=self.batches,
            rounds=self.rounds,
            seconds=self.seconds,
        )
        path = write_result("session", {"models": model_facts(entries), **data}, folder=self.results_dir)
        Console().print(session_table(data))
        kept = ("model", "threads", "batch", "p50_us", "p90_us", "p99_us", "images_per_s", "speedup")
        rows = [{key: row[key] for key in kept} for row in data["rows"]]
        print(json.dumps({"result": str(path), "rows": rows}))


def session_table(data: dict[str, Any]) -> Table:
    """Lay out what `measure_sessions` returned."""
    table = Table(
        title=f"onnxruntime alone, {data['rounds']} rounds in turns", box=SIMPLE_HEAD, title_justify="left"
    )
    for name in ("model", "threads", "batch", "p50 µs", "p90 µs", "p99 µs", "images/s", "speedup"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    for row in data["rows"]:
        table.add_row(
            row["model"],
            str(row["threads"]),
            str(row["batch"]),
            *(f"{row[key]:,.1f}" for key in ("p50_us", "p90_us", "p99_us")),
            f"{row['images_per_s']:,}",
            f"{row['speedup']:.2f}" if row["speedup"] else "",
        )
    return table
