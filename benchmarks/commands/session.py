"""`distillery-bench session`: models in onnxruntime alone, by threads and batch."""

from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from benchmarks.commands.bench import Bench, RepositorySettings
from benchmarks.load.sessions import measure_sessions
from benchmarks.results.models import model_facts


class Session(Bench, RepositorySettings):
    """Measure models in onnxruntime alone: latency by model, threads and batch."""

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
