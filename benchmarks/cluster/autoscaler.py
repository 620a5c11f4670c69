"""Kubernetes' HorizontalPodAutoscaler as a function of metrics and time, with the settings of a manifest.

The algorithm is that of https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale, for metrics
of the type AverageValue, which KEDA's triggers become.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import yaml

TOLERANCE = 0.1
"""A ratio of metric and threshold this close to 1 changes nothing; the default of Kubernetes."""
SYNC_S = 15.0
"""Between two decisions; the default of Kubernetes."""


class Trigger(NamedTuple):
    """A query of Prometheus, whose value per replica is compared with the threshold."""

    name: str
    query: str
    threshold: float


@dataclass(frozen=True)
class Scaling:
    """What a ScaledObject states."""

    triggers: Sequence[Trigger]
    behavior: Mapping[str, Any]
    minimum: int
    maximum: int

    @classmethod
    def read(cls, manifest: Path) -> "Scaling":
        """Read the manifest of a ScaledObject of KEDA."""
        spec = yaml.safe_load(manifest.read_text())["spec"]
        return cls(
            [
                Trigger(one["name"], one["metadata"]["query"], float(one["metadata"]["threshold"]))
                for one in spec["triggers"]
            ],
            spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
            spec["minReplicaCount"],
            spec["maxReplicaCount"],
        )


class Autoscaler:
    """Decides on the number of replicas; time is in seconds, and all windows are shorter by the factor `faster`."""

    def __init__(self, behavior: Mapping[str, Any], minimum: int, maximum: int, *, faster: float = 1) -> None:
        self._up, self._down = behavior["scaleUp"], behavior["scaleDown"]
        self._limits = minimum, maximum
        self._faster = faster
        self._recommended: list[tuple[float, int]] = []
        self._changes: list[tuple[float, int]] = []

    def desired(self, now: float, replicas: int, metrics: Sequence[tuple[float | None, float]]) -> int:
        """Return the number of replicas that follows from metrics, pairs of a sum over replicas and a threshold.

        A metric without a value is left out, and prevents that replicas are removed.
        """
        wanted = max(
            (_replicas(value, threshold, replicas) for value, threshold in metrics if value is not None),
            default=replicas,
        )
        if any(value is None for value, _ in metrics):
            wanted = max(wanted, replicas)
        minimum, maximum = self._limits
        wanted = self._limited(now, replicas, self._stabilised(now, replicas, wanted))
        wanted = min(max(wanted, minimum), maximum)
        if wanted != replicas:
            self._changes.append((now, wanted - replicas))
        return wanted

    def _stabilised(self, now: float, replicas: int, wanted: int) -> int:
        """Return the least recommendation of the window for growth, or the greatest of the one for shrinkage."""
        self._recommended.append((now, wanted))

        def within(rules: Mapping[str, Any]) -> list[int]:
            start = now - rules["stabilizationWindowSeconds"] / self._faster
            return [wanted, *(number for time, number in self._recommended if time > start)]

        return min(max(replicas, min(within(self._up))), max(within(self._down)))

    def _limited(self, now: float, replicas: int, wanted: int) -> int:
        """Return the nearest number that the policies allow: the most permissive one counts."""
        rules, sign = (self._up, 1) if wanted > replicas else (self._down, -1)
        allowed: list[int] = []
        for policy in rules["policies"]:
            start = now - policy["periodSeconds"] / self._faster
            before = replicas - sum(change for time, change in self._changes if time > start)
            share = float(policy["value"]) * (before / 100 if policy["type"] == "Percent" else 1)
            allowed.append(ceil(before + sign * share))
        if wanted > replicas:
            return max(replicas, min(wanted, max(allowed)))
        return min(replicas, max(wanted, min(allowed)))


def _replicas(value: float, threshold: float, replicas: int) -> int:
    ratio = value / (threshold * replicas)
    return replicas if abs(ratio - 1) <= TOLERANCE else ceil(value / threshold)
