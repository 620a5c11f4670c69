"""The decisions on candidates: their record, and those that a rule makes.

Every decision is a metric, a line of the log, an entry of `GET /release`, and the content of `release.json`.
"""

import logging
import time
from collections import deque
from math import log10
from pathlib import Path
from typing import Any, Literal

from distillery import DistilleryError
from serving.engine.metrics.series import (
    RELEASE_DECISION_TIME,
    RELEASE_DECISIONS,
    RELEASE_EVIDENCE,
    Metrics,
)
from serving.engine.models import Deployment
from serving.model.release import Release, Rule, write_release
from serving.release.changes import version_of
from serving.release.rule import Comparisons

MAX_DECISIONS = 100
"""That are remembered."""
JUDGE_SECONDS = 1.0
"""Between two looks at the metrics."""

_logger = logging.getLogger("distillery")


class Decisions:
    """The decisions since the service started, and the evidence on the present candidate."""

    def __init__(self, models_dir: Path, metrics: Metrics) -> None:
        """Write to the release file of `models_dir`, and to the last row of `metrics`."""
        self._models_dir, self._metrics = models_dir, metrics
        self._row = metrics.row(metrics.processes - 1)
        self._made: deque[dict[str, Any]] = deque(maxlen=MAX_DECISIONS)
        self._is_written = True
        self._comparisons: Comparisons | None = None
        self._compared: tuple[str, float, Rule | None] | None = None
        self._due = 0.0
        self._reason = ""

    def judge(self, deployment: Deployment) -> Literal["promote", "rollback"] | None:
        """Compare candidate and stable version, once a second; return what the rule decides."""
        release, now = deployment.release, time.monotonic()
        if release.candidate is None or now < self._due:
            return None
        self._due = now + JUDGE_SECONDS
        totals = self._metrics.totals()
        comparisons = self._comparisons
        identity = release.candidate, release.started, release.rule
        if comparisons is None or self._compared != identity:  # other shares leave the evidence as it is
            stable, candidate = (
                deployment.slots[version_of(deployment, one)] for one in (release.stable, release.candidate)
            )
            comparisons = Comparisons(release.rule or Rule(), stable, candidate, totals)
            self._comparisons, self._compared = comparisons, identity
        verdict = comparisons.update(totals)
        for name, one in comparisons.evidence().items():
            for hypothesis, value in (("worse", one.worse), ("as_good", one.as_good)):
                evidence = self._row.of(RELEASE_EVIDENCE, criterion=name, hypothesis=hypothesis)
                evidence[...] = log10(max(value, 1e-300))
        if release.rule is None or verdict is None:
            return None
        if verdict == "worse":
            self._reason = comparisons.reason(verdict)
            return "rollback"
        self._reason = f"as good in {comparisons.reason(verdict)}"
        return "promote" if release.rule.promote else None

    def record(self, decision: str, by: str, deployment: Deployment) -> dict[str, Any]:
        """Record a decision that was made; return the state of the release."""
        release, reason = deployment.release, self._reason if by == "rule" else ""
        count = self._row.of(RELEASE_DECISIONS, decision=decision, by=by)
        count += 1
        self._row.of(RELEASE_DECISION_TIME, decision=decision)[...] = time.time()
        self._row.of(RELEASE_EVIDENCE)[...] = 0
        _logger.warning(
            "release: %s by %s%s: stable %s, candidate %s",
            decision, by, f" ({reason})" if reason else "", release.stable, release.candidate or "none",
        )  # fmt: skip
        self._made.append(
            {
                "time": time.time(),
                "decision": decision,
                "by": by,
                "stable": release.stable,
                "candidate": release.candidate,
                "reason": reason,
            }
        )
        self._reason = ""
        if self._compared != (release.candidate, release.started, release.rule):
            self._comparisons = None
        self._is_written = self._write(release)
        return self.state(deployment)

    def state(self, deployment: Deployment) -> dict[str, Any]:
        """Return the release, the evidence for and against the candidate, and the last decisions."""
        comparisons = self._comparisons
        evidence = comparisons.evidence() if comparisons else {}
        return {
            **deployment.release.model_dump(mode="json"),
            "stable": "/".join(version_of(deployment, deployment.release.stable)),
            "persisted": self._is_written,
            "slow_ms": comparisons.slow_ms if comparisons else None,
            "criteria": {name: one._asdict() for name, one in evidence.items()},
            "decisions": list(self._made),
        }

    def _write(self, release: Release) -> bool:
        """Write the release file; return whether that was possible."""
        try:
            write_release(self._models_dir, release)
        except DistilleryError as error:
            _logger.error("%s; the release is valid until the service ends", error)
            return False
        return True
