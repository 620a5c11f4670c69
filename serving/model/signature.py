"""Ed25519 signatures of manifests (RFC 8032), which a service with `--public-key` requires.

    models/<name>/<version>/manifest.json.sig    64 bytes: the signature of the bytes of manifest.json

A manifest contains the SHA-256 of its graph, and the name and version that its folders must have: a signature holds for
one graph in one place. It covers neither MODEL_CARD.md nor config.pbtxt, and does not expire: where the newest version
has been removed, an older one that a known key has signed is accepted.

`export` makes signatures. So does `openssl pkeyutl -sign -rawin -inkey signing.pem -in manifest.json`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from distillery import DistilleryError

if TYPE_CHECKING:  # imported where a key is configured: the package takes 18 MB and 50 ms
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNATURE_FILE = "manifest.json.sig"
_BYTES = 64
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


class SignatureError(DistilleryError):
    """A model that is not signed with a known key, or an unusable key. The message names the file and the fix."""


class PublicKeys:
    """The public keys of a file, each of which may have signed a model."""

    def __init__(self, path: Path, keys: Sequence["Ed25519PublicKey"]) -> None:
        self._path = path
        self._keys = keys

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a PEM file with at least one Ed25519 key. Raises `SignatureError`."""
        try:
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415
            from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415
        except ImportError:
            raise SignatureError("--public-key needs cryptography: pip install '.[serving,signed]'") from None
        keys = []
        for label, block in pem_blocks(path, "--public-key"):
            try:
                key = load_pem_public_key(block) if label == "PUBLIC KEY" else None
            except Exception as error:  # noqa: BLE001 - OpenSSL's errors have no common class
                raise SignatureError(f"--public-key: {path} contains an invalid key: {error}") from None
            if not isinstance(key, Ed25519PublicKey):
                found = label if key is None else f"{label} of another kind"
                raise SignatureError(
                    f"--public-key: {path} contains a {found}, expected Ed25519 public keys alone, as "
                    "`distillery-export key` writes them"
                )
            keys.append(key)
        return cls(path, keys)

    def verify(self, manifest: Path, content: bytes) -> None:
        """Check that one of the keys has signed the content of a manifest. Raises `SignatureError`."""
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415

        path = manifest.with_name(SIGNATURE_FILE)
        fix = "sign the model with `distillery-export sign`, if it is yours"
        if not path.is_file():
            raise SignatureError(
                f"{manifest} is not signed: there is no {path.name}, which --public-key {self._path} requires; {fix}"
            )
        with path.open("rb") as file:
            signature = file.read(_BYTES + 1)
        for key in self._keys:
            try:
                return key.verify(signature, content)
            except InvalidSignature:
                continue
        raise SignatureError(
            f"{path} does not hold for {manifest.name} with any of the {len(self._keys)} keys in {self._path}: the "
            f"manifest was changed, or signed with another key; {fix}"
        )


def pem_blocks(path: Path, setting: str) -> list[tuple[str, bytes]]:
    """Return label and text of each key in the PEM file that `setting` names. Raises `SignatureError`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SignatureError(f"{setting}: cannot read {path}: {error.strerror}") from None
    blocks = [(found[1].decode(), found[0]) for found in _PEM.finditer(content)]
    if not blocks:
        raise SignatureError(
            f"{setting}: {path} contains no key in PEM format; `distillery-export key` makes a pair"
        )
    return blocks
