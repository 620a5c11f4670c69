"""Settings that commands share."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from distillery import Command, Metavar


class RepositorySettings(Command):
    """The model repository, and the key that signs its models."""

    group = "model repository"

    models_dir: Path = Field(Path("models"), description="model repository")
    signing_key: Annotated[Path | None, Metavar("FILE")] = Field(
        None,
        description="PEM file with the Ed25519 private key that signs each manifest, for services with --public-key",
    )
