"""What a service serves, without a service."""

from pathlib import Path

from serving.engine.models import Deployment
from serving.model.release import Release
from serving.model.versions import load_snapshot


def deploy(root: Path, stable: str = "student") -> Deployment:
    """Return the deployment of a repository."""
    snapshot = load_snapshot(root)
    slots = {entry.version_key: str(slot) for slot, entry in enumerate(snapshot)}
    return Deployment(0, snapshot, slots, Release(stable=stable))
