"""Certificates of an authority of our own, for services with TLS."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme


class Authority:
    """Issues certificates into the files `certificate` and `key` of a folder."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))
        self.certificate, self.key = folder / "cert.pem", folder / "key.pem"

    def issue(self, *, begins: int = -1, ends: int = 10) -> str:
        """Write a new certificate and its key, valid in these days from now; return the certificate."""
        now = datetime.now(UTC)
        issued = self._ca.issue_cert(
            "127.0.0.1",
            "localhost",
            not_before=now + timedelta(days=begins),
            not_after=now + timedelta(days=ends),
        )
        for path, blobs in ((self.certificate, issued.cert_chain_pems), (self.key, [issued.private_key_pem])):
            path.write_bytes(b"".join(blob.bytes() for blob in blobs))
        return issued.cert_chain_pems[0].bytes().decode()

    @property
    def flags(self) -> tuple[str, ...]:
        """Of a service."""
        return "--tls-cert", str(self.certificate), "--tls-key", str(self.key)

    def client(self) -> ssl.SSLContext:
        """Return the context of a client that trusts this authority alone."""
        return ssl.create_default_context(cafile=self.file)
