"""Publish a copy of a model: the last step of an export, without the seconds before it."""

from pathlib import Path

from distillery import Command
from export.publish import publish
from serving.model.repository import load_model


class Publish(Command):
    """Publish a copy of a model."""

    source: Path
    models_dir: Path
    test_errors: int

    def run(self) -> None:
        entry = load_model(self.source)
        manifest = entry.manifest.model_copy(update={"test_errors": self.test_errors})
        publish(self.models_dir, manifest, entry.path.read_bytes(), self.source / "no-checkpoint")


COMMANDS = {"publish": Publish}
