"""The slots of the metrics: which served version has which, and when one may be taken over by another version."""

import time

from serving.engine.metrics.series import Metrics, Slots
from serving.model.versions import Snapshot, Version
from serving.release.changes import ChangeError

RETIRED_SECONDS = 30.0
"""After which the metrics of a version that is no longer served may make room for those of another one."""


class SlotTable:
    """The slots of a service."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._retired: dict[Version, float] = {}

    def assign(self, slots: Slots, snapshot: Snapshot) -> Slots:
        """Return `slots` with one for each version of `snapshot`, always a new mapping. Raises `ChangeError`."""
        assigned = dict(slots)
        free = {str(slot) for slot in range(self._metrics.slots)} - set(assigned.values())
        wanted = [entry.version_key for entry in snapshot]
        gone = self._gone(wanted)
        for version in wanted:
            if version in assigned:
                continue
            if not free and gone:
                oldest = gone.pop(0)
                del self._retired[oldest]
                slot = assigned.pop(oldest)
                free.add(slot)
                self._metrics.clear(int(slot))
            if not free:
                raise ChangeError(
                    f"{self._metrics.slots} versions are or were served in the last {RETIRED_SECONDS:g} s, and there "
                    "is no room for the metrics of another one; retry later, or serve fewer versions"
                )
            assigned[version] = min(free, key=int)
            free.discard(assigned[version])
        return assigned

    def _gone(self, wanted: list[Version]) -> list[Version]:
        """Return the versions whose slots may be taken over, the oldest first."""
        latest = time.monotonic() - RETIRED_SECONDS
        gone = sorted((since, version) for version, since in self._retired.items() if since < latest)
        return [version for _, version in gone if version not in wanted]

    def note(self, slots: Slots, snapshot: Snapshot) -> None:
        """Remember since when the versions in `slots` are no longer in `snapshot`."""
        now = time.monotonic()
        served = {entry.version_key for entry in snapshot}
        for version in slots:
            if version in served:
                self._retired.pop(version, None)
            else:
                self._retired.setdefault(version, now)
