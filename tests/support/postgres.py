"""A PostgreSQL on a host of its own, with a database in a temporary folder."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from benchmarks.cluster.hosts import Host
from tests.support.service import eventually

USER, PASSWORD = "sweeper", "a-secret-of-the-test"
_PORT = 5432
_OWNER = "postgres"
"""The unprivileged user that Debian's package creates: PostgreSQL refuses to run as root."""


@dataclass
class Postgres:
    """A database server, which can be stopped and started again."""

    host: Host
    programs: Path
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def url(self, database: str, *, password: str = PASSWORD) -> str:
        """Return the URL of a database, with the password."""
        return f"postgresql+psycopg://{USER}:{password}@{self.host.address}:{_PORT}/{database}"

    def create(self, database: str) -> str:
        """Create a database without tables, and return its URL."""
        with self.connected("postgres") as connection:
            connection.execute(f"CREATE DATABASE {database}")
        return self.url(database)

    @contextmanager
    def connected(self, database: str) -> Iterator[psycopg.Connection]:
        """Yield a connection from the server's own host."""
        url = self.url(database).replace("+psycopg", "")
        with self.host.entered(), psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
            yield connection

    def start(self) -> None:
        """Start the server, and wait until it responds."""
        options = {
            "listen_addresses": self.host.address,
            "port": str(_PORT),
            "unix_socket_directories": "",
            "fsync": "off",
        }
        command = [self.programs / "postgres", "-D", self.folder]
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with self.host.entered():
            self.process = _started_as_owner([*command, *settings])
        eventually(self._responds, seconds=60)

    def stop(self) -> None:
        """Stop the server; its connections are closed."""
        if self.process:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)
            self.process = None

    def _responds(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "postgres has ended"
        try:
            with self.connected("postgres"):
                return True
        except psycopg.OperationalError:
            return False


@contextmanager
def postgres(host: Host) -> Iterator[Postgres]:
    """Yield a running server on `host`; skip the test where Debian's package is missing."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("needs Debian's postgresql package (make system)")
    folder = Path(tempfile.mkdtemp(prefix="distillery-postgres-"))
    server = Postgres(host, programs[-1], folder / "data")
    try:
        (folder / "password").write_text(PASSWORD)
        for path in (folder, folder / "password"):
            shutil.chown(path, _OWNER, _OWNER)
        settings = ["--auth=scram-sha-256", f"--username={USER}", f"--pwfile={folder / 'password'}"]
        initdb = [
            programs[-1] / "initdb",
            "--no-sync",
            "--no-locale",
            "--encoding=UTF8",
            *settings,
            server.folder,
        ]
        assert _started_as_owner(initdb).wait(120) == 0
        with (server.folder / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 10.77.0.0/24 scram-sha-256\n")
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


def _started_as_owner(command: list[str | Path]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*map(str, command)],
        user=_OWNER,
        group=_OWNER,
        extra_groups=[],
        cwd="/",
        env={"PATH": os.environ["PATH"]},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
