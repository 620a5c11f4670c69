"""`distillery-bench session`: models in onnxruntime alone, by threads and batch."""

from collections.abc import Iterator
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt
from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.commands.bench import Bench, RepositorySettings
from benchmarks.load.sessions import measure_sessions
from benchmarks.results.models import model_facts
from benchmarks.results.ratio import LEGEND, Ratio


class Session(Bench, RepositorySettings):
    """Measure models in onnxruntime alone: latency by model, threads and batch.

    Prints a table and, last, one line of JSON; keeps the result in a file under --results-dir.
    """

    examples = (
        "distillery-bench session",
        "distillery-bench session --models teacher,student --threads 1,2 --batches 1",
    )

    threads: list[PositiveInt] = Field([1], description="intra-op threads of a session")
    batches: list[PositiveInt] = Field([1, 64], description="images per run")
    rounds: PositiveInt = Field(9, description="rounds; each measures every case once")
    seconds: PositiveFloat = Field(20.0, description="seconds in total")

    def measure(self) -> dict[str, Any]:
        entries = self.entries()
        data = measure_sessions(
            {name: entry.path for name, entry in self.measured(entries).items()},
            threads=self.threads,
            batches=self.batches,
            rounds=self.rounds,
            seconds=self.seconds,
        )
        return {"models": model_facts(entries), **data}

    def tables(self, data: dict[str, Any]) -> Iterator[Table]:
        table = Table(
            title=f"onnxruntime alone, {data['rounds']} interleaved rounds; times in µs",
            caption=LEGEND,
            box=SIMPLE_HEAD,
            title_justify="left",
            caption_justify="left",
            padding=(0, 1, 0, 0),
        )
        for name in ("model", "threads", "batch", "p50", "p90", "p99", "images/s", "× teacher"):
            table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
        for row in data["rows"]:
            table.add_row(
                row["model"],
                str(row["threads"]),
                str(row["batch"]),
                *(f"{row[key]:,.1f}" for key in ("p50_us", "p90_us", "p99_us")),
                f"{row['images_per_s']:,}",
                str(Ratio.from_json(row["speedup"]) or ""),
            )
        yield table
