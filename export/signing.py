"""Keys that sign manifests, for services with `--public-key`; `serving.model.signature` states what is covered."""

import os
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from distillery.files import write_atomically
from export import ExportError
from serving.model.repository import MANIFEST_FILE, Manifest, ModelEntry
from serving.model.signature import SIGNATURE_FILE, pem_blocks


class SigningKey:
    """A private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> Self:
        """Make a key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the private key of a PEM file. Raises `SignatureError`, `ExportError` if it is no Ed25519 key."""
        (label, block), *more = pem_blocks(path, "--signing-key")
        problem = "several keys" if more else f"a {label}"
        if label == "PRIVATE KEY" and not more:
            try:
                key = load_pem_private_key(block, password=None)
            except Exception as error:  # noqa: BLE001 - OpenSSL's errors have no common class
                raise ExportError(f"--signing-key: {path} contains an invalid key: {error}") from None
            if isinstance(key, Ed25519PrivateKey):
                return cls(key)
            problem = "a private key of another kind"
        raise ExportError(
            f"--signing-key: {path} contains {problem}, expected one Ed25519 private key without a password, as "
            "`distillery-export key` writes it"
        )

    def write(self, path: Path) -> None:
        """Write the private key to a new file, which only its owner can read. Raises `ExportError`."""
        content = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise ExportError(f"--signing-key: {path} exists and is left as it is; name a new file") from None
        except OSError as error:
            raise ExportError(f"--signing-key: cannot write {path}: {error.strerror}") from None
        with os.fdopen(number, "wb") as file:
            file.write(content)

    def public_pem(self) -> bytes:
        """Return the public key."""
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, content: bytes) -> bytes:
        """Return the signature, 64 bytes; the same for the same content."""
        return self._key.sign(content)

    def has_signed(self, content: bytes, signature: bytes) -> bool:
        """Return whether this key made the signature."""
        try:
            self._key.public_key().verify(signature, content)
        except InvalidSignature:
            return False
        return True


def sign_model(entry: ModelEntry, key: SigningKey) -> bool:
    """Sign the manifest of a verified model; return whether the key had not signed it before. Raises `ExportError`."""
    manifest, signature = (entry.path.with_name(name) for name in (MANIFEST_FILE, SIGNATURE_FILE))
    content = manifest.read_bytes()
    if Manifest.model_validate_json(content) != entry.manifest:
        raise ExportError(f"{manifest} has changed since it was verified; run the command again")
    if signature.is_file() and key.has_signed(content, signature.read_bytes()):
        return False
    write_atomically(signature, key.sign(content))
    return True
