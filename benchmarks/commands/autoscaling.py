"""`distillery-bench autoscaling`: the number of replicas over a day's load, as Kubernetes and KEDA would decide."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from benchmarks.cluster.replay import OBJECTIVE_S, replay
from benchmarks.commands.bench import Bench, RepositorySettings
from benchmarks.results.models import model_facts


class Autoscaling(Bench, RepositorySettings):
    """Replay a day's load on real replicas, whose number the autoscaler decides.

    Real replicas behind HAProxy, a real Prometheus with the queries of deploy/kubernetes/components/keda, and the
    HorizontalPodAutoscaler's algorithm with the windows and policies of the same file, in compressed time. Needs root.
    """

    limitations = (
        "time is compressed, but the start of a replica is not: it takes a minute or more of the replay",
        "the replicas have a CPU quota and share this machine with the load generator and other work",
        "one to six replicas instead of the manifest's numbers",
    )
    examples = ("distillery-bench autoscaling --faster 60",)

    model: str = Field("student", description="model to serve")
    faster: PositiveFloat = Field(30.0, description="factor by which time is compressed")
    cores: PositiveFloat = Field(0.3, description="CPU quota of each replica, in cores")
    maximum: PositiveInt = Field(6, description="largest number of replicas")
    peak: PositiveFloat = Field(2.0, description="largest load, in multiples of the capacity of one replica")

    def measure(self) -> dict[str, Any]:
        entries = self.entries()
        with TemporaryDirectory() as folder:
            (Path(folder) / self.model).symlink_to((self.models_dir / self.model).resolve())
            data = replay(
                Path(folder),
                self.model,
                faster=self.faster,
                cores=self.cores,
                maximum=self.maximum,
                peak=self.peak,
            )
        return {"models": model_facts({self.model: entries[self.model]}), "model": self.model, **data}

    def summary(self, data: dict[str, Any]) -> dict[str, Any]:
        return {key: data[key] for key in ("largest", "turns", "over_objective_share")} | {
            "objective_s": OBJECTIVE_S
        }
