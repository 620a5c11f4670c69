"""What a service serves from its start: all models of its repository, and the release that is stored in it."""

import logging
from collections.abc import Iterable

from distillery import DistilleryError, unknown
from serving.config import ServiceSettings
from serving.engine.models import Deployment
from serving.model.release import Release, read_release
from serving.model.repository import default_model
from serving.model.signature import PublicKeys
from serving.model.versions import load_snapshot

_logger = logging.getLogger("distillery")


class UnknownDefaultError(DistilleryError):
    """The default model is not in the repository."""


def first_deployment(settings: ServiceSettings, keys: PublicKeys | None) -> Deployment:
    """Return what is served from the start. Raises `RepositoryError`, `SignatureError`, `UnknownDefaultError`."""
    release = read_release(settings.models_dir)
    snapshot = load_snapshot(settings.models_dir, keys, pinned=release.pinned() if release else ())
    wanted = settings.default_model
    if release is None:
        release = Release(stable=choose_default(snapshot.versions, wanted))
    elif wanted and wanted != release.stable:
        _logger.warning(
            "--default-model %s has no effect: release.json in %s names %s as stable",
            wanted, settings.models_dir, release.stable,
        )  # fmt: skip
    release.check(snapshot)
    slots = {entry.version_key: str(slot) for slot, entry in enumerate(snapshot)}
    return Deployment(0, snapshot, slots, release)


def choose_default(models: Iterable[str], wanted: str | None) -> str:
    """Return the model that serves `POST /predict`. Raises `UnknownDefaultError`."""
    names = list(models)
    if wanted is None:
        return default_model(names)
    if wanted not in names:
        raise UnknownDefaultError(f"--default-model: {unknown('model', wanted, names)}")
    return wanted
