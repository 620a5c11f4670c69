"""`distillery-bench footprint`: what the service takes before anybody asks it anything.

distillery-bench footprint --executor inprocess,workers
"""

import json
import time
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from benchmarks.results.files import RESULTS, warn_if_busy, write_result
from benchmarks.results.models import model_facts, select_models
from benchmarks.systems.processes import MIB
from benchmarks.systems.profiling import api_processes
from benchmarks.systems.servers import Executor, service_process
from distillery import Command


class FootprintBench(Command):
    """Measure start to ready, memory of the processes and idle CPU of the service.

    Memory is the proportional set size (PSS): pages shared by several processes count in parts. Prints one line
    of JSON; keeps everything in a file under --results-dir.
    """

    models_dir: Path = Field(Path("models"), description="the model repository that is served")
    executor: list[Executor] = Field(["inprocess", "workers"], description="executors to start it with")
    starts: PositiveInt = Field(5, description="how often it is started")
    idle_seconds: PositiveFloat = Field(20.0, description="how long it is watched doing nothing")
    results_dir: Path = Field(RESULTS, description="where the result is kept")

    def run(self) -> None:
        warn_if_busy()
        rows = [self._measure(executor) for executor in self.executor]
        data = {
            "models": model_facts(select_models(self.models_dir, [])),
            "idle_seconds": self.idle_seconds,
            "rows": rows,
        }
        path = write_result("footprint", data, folder=self.results_dir)
        print(json.dumps({"result": str(path), "rows": rows}))

    def _measure(self, executor: Executor) -> dict[str, Any]:
        starts = []
        for _ in range(self.starts):
            with service_process(self.models_dir, "--executor", executor) as server:
                starts.append(server.seconds_to_start)
        with service_process(self.models_dir, "--executor", executor) as server:
            time.sleep(2)  # what it does once, it has done
            idle = server.cpu_of_a_core(self.idle_seconds)
            apis = [process.memory_full_info().pss / MIB for process in api_processes(server)]
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
