"""The watch of a model repository: whether what is served from it has changed."""

import time
from pathlib import Path

from serving.engine.watched_files import stamp
from serving.model.repository import CARD_FILE, MANIFEST_FILE, MODEL_FILE, RELEASE_FILE
from serving.model.signature import SIGNATURE_FILE
from serving.model.versions import CONFIG_FILE

POLL_SECONDS = 1.0
"""Polled rather than notified: that works on network file systems and behind the links of a Kubernetes volume."""
_PATTERNS = (
    RELEASE_FILE,
    f"*/{CONFIG_FILE}",
    *(f"*/[0-9]*/{name}" for name in (MANIFEST_FILE, MODEL_FILE, CARD_FILE, SIGNATURE_FILE)),
)


class RepositoryWatch:
    """Compares the files of a repository with those of the last look."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._handled = self._seen = self._stamps()
        self._due = time.monotonic() + POLL_SECONDS

    def changed(self) -> bool:
        """Return whether files have changed and then stayed the same for a second; once for every change."""
        now = time.monotonic()
        if now < self._due:
            return False
        self._due = now + POLL_SECONDS
        stamps = self._stamps()
        settled, self._seen = stamps == self._seen, stamps
        if not settled or stamps == self._handled:
            return False
        self._handled = stamps
        return True

    def _stamps(self) -> dict[str, tuple[int, ...] | None]:
        found = {}
        for pattern in _PATTERNS:
            for path in self._root.glob(pattern):
                if not path.relative_to(self._root).parts[0].startswith("."):
                    found[str(path)] = stamp(path)
        return found
