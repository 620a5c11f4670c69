"""`distillery-export key`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from distillery import Command, Metavar
from export import ExportError
from export.signing import SigningKey


class Key(Command):
    """Make a pair of Ed25519 keys: one signs models, the other verifies them.

    Services need the public key alone. A file may have several: models signed with any of them are served, so that
    a key can be replaced step by step.
    """

    examples = (
        "distillery-export key",
        "distillery-export key --signing-key signing-2027.pem --public-key public.pem",
    )

    signing_key: Annotated[Path, Metavar("FILE")] = Field(
        Path("signing.pem"), description="new file for the private key, which only its owner can read"
    )
    public_key: Annotated[Path, Metavar("FILE")] = Field(
        Path("public.pem"), description="file that the public key is appended to"
    )

    def run(self) -> None:
        key = SigningKey.generate()
        key.write(self.signing_key)
        try:
            with self.public_key.open("ab") as file:
                file.write(key.public_pem())
        except OSError as error:
            self.signing_key.unlink()
            raise ExportError(f"--public-key: cannot write {self.public_key}: {error.strerror}") from None
        print(f"private key: {self.signing_key}\npublic key:  {self.public_key}")
