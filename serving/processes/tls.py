"""TLS: a certificate and its key, which are read again when their files change.

New connections get the new certificate, open ones continue. Files that are invalid change nothing.
"""

import os
import re
import ssl
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, Self

from distillery import DistilleryError
from serving.engine.watched_files import WatchedFiles

_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_KEY = re.compile("-----BEGIN ((?:[A-Z]+ )?PRIVATE KEY)-----.+?-----END \\1-----", re.DOTALL)
_ENCRYPTED = re.compile("ENCRYPTED")
_MAX_BYTES = 64 * 1024
"""Of a file."""
_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME: to name the date, the time is checked here."""


class CertificateError(DistilleryError):
    """The certificate or its key is invalid."""


class Pem(NamedTuple):
    """A certificate with its chain, and its key, in PEM form."""

    chain: bytes
    key: bytes

    @classmethod
    def read(cls, certificate: Path, key: Path) -> Self:
        """Read the files and check that they can serve. Raises `CertificateError`."""
        found = cls(_read("--tls-cert", certificate), _read("--tls-key", key))
        found._check(certificate, key)
        return found

    def context(self) -> ssl.SSLContext:
        """Return the context of a server. Raises `ssl.SSLError`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        with _named(self.chain) as chain, _named(self.key) as key:
            context.load_cert_chain(chain, key)
        return context

    def _check(self, certificate: Path, key: Path) -> None:
        """Shake hands with a client that trusts this certificate alone. Raises `CertificateError`."""
        leaf = _CERTIFICATE.search(self.chain.decode("latin-1"))
        if leaf is None:
            raise CertificateError(
                f"--tls-cert {certificate}: expected a certificate in PEM form, "
                "-----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----"
            )
        private = _KEY.search(self.key.decode("latin-1"))
        if private is None:
            raise CertificateError(
                f"--tls-key {key}: expected a private key in PEM form, "
                "-----BEGIN PRIVATE KEY----- to -----END PRIVATE KEY-----"
            )
        if _ENCRYPTED.search(private[0]):
            raise CertificateError(
                f"--tls-key {key}: the key is encrypted; decrypt it with `openssl pkey -in KEY -out FILE`"
            )
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
        try:
            client.load_verify_locations(cadata=leaf[0])
        except (ssl.SSLError, ValueError) as error:
            raise CertificateError(f"--tls-cert {certificate}: not a certificate: {_text(error)}") from None
        try:
            server = self.context()
        except ssl.SSLError as error:
            reason = "is not the key of" if error.reason == "KEY_VALUES_MISMATCH" else "cannot be used with"
            raise CertificateError(
                f"--tls-key {key} {reason} --tls-cert {certificate}: {_text(error)}"
            ) from None
        try:
            found = _handshake(client, server)
        except ssl.SSLError as error:
            raise CertificateError(
                f"--tls-cert {certificate}: clients would reject it: {_text(error)}"
            ) from None
        now = time.time()
        if now > ssl.cert_time_to_seconds(found["notAfter"]):
            raise CertificateError(f"--tls-cert {certificate}: expired on {found['notAfter']}; renew it")
        if now < ssl.cert_time_to_seconds(found["notBefore"]):
            raise CertificateError(
                f"--tls-cert {certificate}: valid only from {found['notBefore']}; is the clock right?"
            )


def watch(certificate: Path, key: Path) -> WatchedFiles[Pem]:
    """Read the files. Raises `CertificateError`."""
    return WatchedFiles(partial(Pem.read, certificate, key), certificate, key)


class Certificate:
    """The certificate of a service in one process."""

    def __init__(self, files: WatchedFiles[Pem]) -> None:
        self.files = files
        """May be passed to another process."""
        self._current = files.value.context()
        self.context = files.value.context()
        """Serves every connection with the newest certificate."""
        self.context.sni_callback = self._select

    def reload(self) -> None:
        """Read the files again if they have changed. Raises `CertificateError`; the certificate then stays."""
        if self.files.reload():
            self._current = self.files.value.context()

    def _select(self, connection: ssl.SSLObject | ssl.SSLSocket, *_: object) -> None:
        connection.context = self._current


def _read(setting: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise CertificateError(f"{setting} {path}: {error.strerror}") from None
    if len(content) > _MAX_BYTES:
        raise CertificateError(f"{setting} {path}: has more than {_MAX_BYTES:,} bytes")
    return content


@contextmanager
def _named(content: bytes) -> Iterator[str]:
    """Yield the path of a file with `content`, as OpenSSL needs: in memory on Linux, where keys then reach no disk."""
    with ExitStack() as stack:
        file: IO[bytes]
        if hasattr(os, "memfd_create"):
            file = stack.enter_context(os.fdopen(os.memfd_create("distillery-tls"), "wb"))
            path = f"/proc/self/fd/{file.fileno()}"
        else:
            file = stack.enter_context(tempfile.NamedTemporaryFile())
            path = file.name
        file.write(content)
        file.flush()
        yield path


def _handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> dict[str, str]:
    """Connect client and server in memory; return the server's certificate. Raises `ssl.SSLError`."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)
    for _ in range(3):
        for end in ends:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return ends[0].getpeercert() or {}  # type: ignore[return-value] # dates are strings


def _text(error: Exception) -> str:
    """Return OpenSSL's message without the place in its source."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    reason = getattr(error, "reason", None)
    return reason.lower().replace("_", " ") if reason else str(error)
