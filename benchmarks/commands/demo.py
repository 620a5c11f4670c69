"""The main job, end to end: `make demo`, also `distillery-bench demo`.

Runs the stages' own commands one after the other, each of which reuses what has not changed and goes on where it
was interrupted; then starts the service, sends it every test digit for every model, measures, prints one table,
and fails when any of it is not as it should be.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table

from benchmarks.errors import BenchmarkError
from benchmarks.load.http import cases_of, measure_http
from benchmarks.load.sessions import REFERENCE, measure_sessions
from benchmarks.load.workloads import service_workload
from benchmarks.results.files import write_result
from benchmarks.results.models import model_facts, models_of, select_models
from benchmarks.systems.servers import running_service
from distillery import Command
from distillery.machine import usable_cores
from serving.client import Client
from serving.model.repository import ModelEntry
from serving.model.session import open_session
from training.data.mnist import Digits, find_mnist, load_test

RECIPE = "quick"
MOST_ERRORS = {"teacher": 95, "student": 100}
LEAST_GAIN = 35
"""Test errors that distillation must save: the student alone errs on at least so many digits more."""


class Demo(Command):
    """Train, distil, export, serve and benchmark on MNIST, end to end.

    About five minutes on two cores; a second run reuses what has not changed.
    """

    examples = ("distillery-bench demo", "distillery-bench demo --data-dir mnist --seconds 3")

    data_dir: Path | None = Field(
        None, description="folder with the MNIST files; default: found in known places, or downloaded"
    )
    out: Path = Field(Path("runs"), description="folder of all runs")
    models_dir: Path = Field(Path("models"), description="model repository")
    seconds: float = Field(1, gt=0, description="load per model, number of connections and round")

    def run(self) -> None:
        began = time.monotonic()
        console = Console()
        run_dir = self.out / RECIPE
        data = [f"--data-dir={self.data_dir}"] if self.data_dir else []
        _stage(console, "training", f"--recipe={RECIPE}", f"--out={self.out}", *data)
        _stage(console, "training", "evaluate", f"--recipe={RECIPE}", f"--out={self.out}", *data)
        _stage(console, "export", f"--run-dir={run_dir}", f"--models-dir={self.models_dir}", *data)

        entries = select_models(self.models_dir, models_of(RECIPE, self.models_dir))
        test = load_test(find_mnist(self.data_dir))
        console.rule("[bold]serve and measure", align="left")
        with running_service(self.models_dir) as url:
            with Client(url) as client:
                for entry in track(entries.values(), "every test digit over HTTP", console=console):
                    _check_every_digit(client, entry, test)
            sessions = measure_sessions(
                {name: entry.path for name, entry in entries.items()}, batches=[1], seconds=4
            )
            cases = cases_of([service_workload(url, name) for name in entries], [1, 16])
            with Progress(console=console) as bar:
                task = bar.add_task("requests at 1 and 16 connections", total=len(cases))
                rows = measure_http(
                    cases, rounds=1, seconds=self.seconds, progress=lambda _: bar.advance(task)
                )
        data_kept = {"models": model_facts(entries), "sessions": sessions, "http": rows}
        result = write_result("demo", data_kept, folder=run_dir)
        console.print(_table(entries, sessions["rows"], rows))
        _require_accuracy(entries)
        console.print(
            f"[green]done in {time.monotonic() - began:.0f} s[/]: over HTTP every model answered all {len(test):,} "
            "test digits as its own session does.\n\n"
            "keep it running   make serve   then http://127.0.0.1:8000/docs\n"
            f"networks          {run_dir}/*/model.safetensors\n"
            f"figures           {run_dir}/figures\n"
            f"model repository  {self.models_dir}\n"
            f"these figures     {result}"
        )


def _stage(console: Console, *command: str) -> None:
    """Run one stage as a person would type it."""
    console.rule(f"[bold]python -m {' '.join(command)}", align="left")
    status = subprocess.run([sys.executable, "-m", *command], check=False).returncode
    if status == 128 + 2:
        raise KeyboardInterrupt
    if status:
        raise BenchmarkError(
            f"python -m {' '.join(command)} ended with status {status}; what it said stands above"
        )


def _check_every_digit(client: Client, entry: ModelEntry, test: Digits) -> None:
    """Ask for every test digit over HTTP; digits, probabilities and errors must be those of the file's session."""
    images = test.images.numpy()
    (expected,) = open_session(entry.path).run(["probabilities"], {"image": images})
    found = client.predict(images, entry.name).probabilities
    different = int((found.argmax(1) != expected.argmax(1)).sum())
    distance = float(np.abs(found - expected).max())
    errors = int((found.argmax(1) != test.labels.numpy()).sum())
    if different or distance > 1e-4 or errors != entry.manifest.test_errors:
        raise BenchmarkError(
            f"{entry.name} over HTTP: {different} digits differ from the session's, probabilities by up to "
            f"{distance:.1e}, {errors} test errors where the manifest says {entry.manifest.test_errors}"
        )


def _table(
    entries: dict[str, ModelEntry], sessions: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> Table:
    """One column a model; beside every figure its ratio to the teacher's."""
    table = Table(
        title=f"student against teacher, service and load together on {usable_cores()} cores",
        caption="×: to the teacher · session: batch 1 · HTTP: 1 connection · requests/s: 16",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    figures = {name: _figures(entry, sessions, rows) for name, entry in entries.items()}
    table.add_column("")
    for name in figures:
        table.add_column(name, justify="right")
    for label, (_, reference) in figures[REFERENCE].items():
        cells = [
            f"{text} [dim]{value / reference:.2f}×[/]" for text, value in (f[label] for f in figures.values())
        ]
        table.add_row(label, *cells)
    return table


def _figures(
    entry: ModelEntry, sessions: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> dict[str, tuple[str, float]]:
    """By label, what is shown of a model, and the number in it."""
    manifest = entry.manifest
    session = next(row for row in sessions if row["model"] == entry.name)
    one, many = (
        next(row for row in rows if (row["model"], row["connections"]) == (entry.name, connections))
        for connections in (1, 16)
    )
    return {
        "parameters": (f"{manifest.parameters / 1e6:.2f} M", manifest.parameters),
        "file": (f"{manifest.size_bytes / 1e6:.2f} MB", manifest.size_bytes),
        "test errors": (f"{manifest.test_errors}", manifest.test_errors),
        "test accuracy": (f"{manifest.test_accuracy:.2%}", manifest.test_accuracy),
        "session p50": (f"{session['p50_us']:.0f} µs", session["p50_us"]),
        "session p99": (f"{session['p99_us']:.0f} µs", session["p99_us"]),
        "HTTP p50": (f"{one['p50_ms'] * 1000:.0f} µs", one["p50_ms"]),
        "HTTP p99": (f"{one['p99_ms'] * 1000:.0f} µs", one["p99_ms"]),
        "requests/s": (f"{many['requests_per_s']:,.0f}", many["requests_per_s"]),
    }


def _require_accuracy(entries: dict[str, ModelEntry]) -> None:
    errors = {name: entry.manifest.test_errors for name, entry in entries.items()}
    for name, most in MOST_ERRORS.items():
        if errors[name] > most:
            raise BenchmarkError(f"{name} errs on {errors[name]} test digits, at most {most} were expected")
    if errors["student-alone"] - errors["student"] < LEAST_GAIN:
        raise BenchmarkError(
            f"distillation saved {errors['student-alone'] - errors['student']} test errors "
            f"({errors['student-alone']} alone, {errors['student']} distilled), at least {LEAST_GAIN} were expected"
        )
