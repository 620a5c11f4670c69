"""`distillery-export sign`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from distillery import Metavar
from export.commands.settings import RepositorySettings
from export.signing import SigningKey, sign_model
from serving.model.repository import load_repository


class Sign(RepositorySettings):
    """Sign the models of a repository, for services with --public-key.

    The newest version of each model is verified as a service does at its start, then signed.
    """

    examples = (
        "distillery-export sign --signing-key signing.pem",
        "distillery-export sign --models-dir models-notebook --signing-key signing.pem",
    )

    signing_key: Annotated[Path, Metavar("FILE")] = Field(description="PEM file with the Ed25519 private key")

    def run(self) -> None:
        key = SigningKey.read(self.signing_key)
        for entry in load_repository(self.models_dir).values():
            signed = sign_model(entry, key)
            print(f"{'signed' if signed else 'unchanged':<11}{entry.name}/{entry.manifest.version}")
