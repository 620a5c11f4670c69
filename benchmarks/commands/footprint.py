"""`distillery-bench footprint`: start-up time, memory and idle CPU of the service."""

import time
from statistics import median
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from benchmarks.commands.bench import Bench, RepositorySettings
from benchmarks.load.interleave import interleave
from benchmarks.results.models import model_facts
from benchmarks.systems.servers import Executor, api_processes, own_memory_mib, running_service

SETTLE_S = 2.0
"""Work that the service does once after its start is over by then."""


class Footprint(Bench, RepositorySettings):
    """Measure start-up time, memory and idle CPU of the service.

    Memory is the proportional set size (PSS): a page that n processes share counts as 1/n of a page in each.
    """

    examples = ("distillery-bench footprint --executor inprocess --starts 1",)

    executor: list[Executor] = Field(
        ["inprocess", "workers"], description="executors to start the service with"
    )
    starts: PositiveInt = Field(5, description="starts per executor, interleaved")
    idle_seconds: PositiveFloat = Field(20.0, description="seconds without requests")

    def measure(self) -> dict[str, Any]:
        def start(executor: Executor) -> float:
            with running_service(self.models_dir, "--executor", executor) as server:
                return server.seconds_to_start

        starts = interleave(self.executor, self.starts, start)
        rows = [self._row(executor, seconds) for executor, seconds in zip(self.executor, starts, strict=True)]
        return {"models": model_facts(self.entries()), "idle_seconds": self.idle_seconds, "rows": rows}

    def _row(self, executor: Executor, starts: list[float]) -> dict[str, Any]:
        with running_service(self.models_dir, "--executor", executor) as server:
            time.sleep(SETTLE_S)
            idle = server.cpu_of_a_core(self.idle_seconds)
            apis = [own_memory_mib(process) for process in api_processes(server)]
            total = server.memory_mib()
        return {
            "executor": executor,
            "api_processes": len(apis),
            "start_to_ready_s": round(median(starts), 2),
            "starts_s": [round(seconds, 2) for seconds in starts],
            "pss_per_api_process_mib": round(max(apis), 1),
            "pss_of_everything_mib": round(total, 1),
            "idle_cpu_of_a_core": round(idle, 4),
        }
