"""Engines made of replicas that this process starts, as an orchestrator would, and a balancer in front of them.

The balancers run with the files of `deploy/`, of which only addresses and paths are replaced.
"""

import csv
import io
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import ClassVar

import psutil

from benchmarks.cluster.engines import PORT, Engine, Site
from benchmarks.cluster.hosts import Host
from benchmarks.cluster.quota import cpu_quota
from benchmarks.errors import BenchmarkError
from benchmarks.systems.servers import ROOT, START_S, ServerProcess, running

DEPLOY = ROOT / "deploy"
SAFE_PORT, PLAIN_PORT = 8080, 8081
"""Of the balancer: where it may repeat requests that it has sent, and where not."""


class Replica:
    """The service on a host, port 8000."""

    def __init__(self, host: Host, site: Site) -> None:
        self._stack = ExitStack()
        place = ("--host", "0.0.0.0", "--port", str(PORT), "--models-dir", str(site.models_dir.resolve()))  # noqa: S104
        delay = ("--shutdown-delay", f"{site.shutdown_delay_s:g}")
        prefix = _on_one_core(host) if site.cores else []
        command = [*prefix, sys.executable, "-m", "serving", *place, *delay, "--api-servers", "1"]
        with host.entered():
            self.server: ServerProcess = self._stack.enter_context(
                running(command, f"http://127.0.0.1:{PORT}", ready="/health/ready")
            )
        self._quota = ExitStack()
        if site.cores:
            self._quota.enter_context(cpu_quota(self.server.all(), site.cores))

    def drain(self) -> None:
        """End it by SIGTERM; raise `BenchmarkError` for a status other than 0."""
        self._quota.close()
        self.server.process.terminate()
        try:
            if status := self.server.process.wait(START_S):
                raise BenchmarkError(f"a replica ended with status {status} after SIGTERM, expected 0")
        finally:
            self._stack.close()

    def kill(self) -> None:
        """Kill all its processes."""
        self._quota.close()
        for process in self.server.all():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._stack.close()


class Balanced(Engine):
    """Replicas behind a balancer, which learns of added and removed ones by a reload, and of all else by itself."""

    program: ClassVar[str]
    package: ClassVar[str]
    reload_signal: ClassVar[signal.Signals]
    """Makes it read its configuration again."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        if not shutil.which(self.program):
            raise BenchmarkError(
                f"there is no program {self.program}; install Debian's package {self.package}"
            )
        self.replicas: dict[Host, Replica] = {}
        self._reloading = threading.Lock()
        self._stack = ExitStack()

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        for replica in self.replicas.values():
            replica.kill()

    @classmethod
    def version(cls) -> str:
        done = subprocess.run([cls.program, "-v"], capture_output=True, text=True, check=True)
        [version] = re.findall(r"version:? (?:nginx/)?([\d.]+)", done.stdout + done.stderr)
        return str(version)

    @property
    def url(self) -> str:
        return f"http://{self.site.entry.address}:{SAFE_PORT}"

    @property
    def plain_url(self) -> str:
        return f"http://{self.site.entry.address}:{PLAIN_PORT}"

    def start(self, hosts: Sequence[Host]) -> None:
        for host in hosts:
            self.replicas[host] = Replica(host, self.site)
        self.write(list(self.replicas))
        with self.site.entry.entered():
            self.balancer: ServerProcess = self._stack.enter_context(
                running(self.command(), self.url, ready="/health/ready", cwd=self.site.folder)
            )
        self.wait_for(len(hosts))

    def add(self, host: Host) -> None:
        replica = Replica(host, self.site)
        with self._reloading:
            self.replicas[host] = replica
            self._reload()

    def remove(self, host: Host) -> None:
        with self._reloading:
            replica = self.replicas.pop(host)
            self._reload()
        replica.drain()

    def restart(self) -> None:
        for host in list(self.replicas):
            self.replicas.pop(host).drain()
            self.replicas[host] = Replica(host, self.site)
            self.wait_for(len(self.replicas))

    def kill(self, host: Host) -> None:
        self.replicas[host].kill()

    def recover(self, host: Host) -> None:
        self.replicas[host] = Replica(host, self.site)
        self.wait_for(len(self.replicas))

    def memory_mib(self) -> float:
        return self.balancer.memory_mib()

    @abstractmethod
    def write(self, hosts: Sequence[Host]) -> None:
        """Write the configuration for replicas on these hosts to `site.folder`."""

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command that runs the balancer in the foreground."""

    def wait_for(self, replicas: int) -> None:
        """Return when the balancer sends requests to this number of replicas, if it checks their health."""

    def _reload(self) -> None:
        """Return when processes with the new configuration accept connections, and no others."""
        first = psutil.Process(self.balancer.process.pid)
        before = set(first.children())
        self.write(list(self.replicas))
        first.send_signal(self.reload_signal)
        wait_until(
            lambda: bool(set(first.children()) - before) and not any(map(_listens, before)),
            f"{self.name} accepts connections with its new configuration",
        )
        self.wait_for(len(self.replicas))


class Nginx(Balanced):
    """`deploy/nginx`: no health checks, but the next server where one fails."""

    name = program = "nginx"
    package = "nginx-light"
    reload_signal = signal.SIGHUP

    def write(self, hosts: Sequence[Host]) -> None:
        folder, proxy = self.site.folder, (DEPLOY / "nginx/proxy.conf").read_text()
        (folder / "distillery").mkdir(exist_ok=True)
        (folder / "distillery/proxy.conf").write_text(proxy)
        (folder / "distillery/plain.conf").write_text(proxy.replace(" non_idempotent;", ";"))
        shipped = (DEPLOY / "nginx/distillery.conf").read_text()
        (folder / "distillery.conf").write_text(
            with_servers(shipped, *(f"    server {host.address}:{PORT}" for host in hosts))
        )
        (folder / "nginx.conf").write_text(f"""
daemon off;
user {_user()};
pid nginx.pid;
worker_processes 2;
worker_shutdown_timeout 10s;
events {{}}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    include distillery.conf;
    server {{
        listen {PLAIN_PORT};
        location / {{
            proxy_pass http://distillery;
            include distillery/plain.conf;
        }}
    }}
}}
""")

    def command(self) -> list[str]:
        return ["nginx", "-p", str(self.site.folder), "-e", "stderr", "-c", "nginx.conf"]


class HAProxy(Balanced):
    """`deploy/haproxy`: checks the replicas' health, and sends requests again where one fails."""

    name = program = package = "haproxy"
    reload_signal = signal.SIGUSR2

    @property
    def _socket(self) -> Path:
        return self.site.folder / "admin.sock"

    def write(self, hosts: Sequence[Host]) -> None:
        shipped = (DEPLOY / "haproxy/haproxy.cfg").read_text()
        text = with_servers(shipped, *(f"    server {host.name} {host.address}:{PORT}" for host in hosts))
        text = text.replace("/run/haproxy/admin.sock", str(self._socket))
        plain = f"""
frontend plain
    bind :{PLAIN_PORT}
    option idle-close-on-response
    http-request disable-l7-retry
    default_backend replicas
"""
        (self.site.folder / "haproxy.cfg").write_text(text + plain)

    def command(self) -> list[str]:
        return ["haproxy", "-W", "-f", "haproxy.cfg"]

    def wait_for(self, replicas: int) -> None:
        wait_until(
            lambda: servers_up(self._socket) == replicas, f"HAProxy has {replicas} servers that are up"
        )


ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (Nginx, HAProxy)}


def servers_up(path: Path) -> int:
    """Return the number of servers to which the HAProxy with this socket sends requests; 0 if it does not respond."""
    with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
        connection.settimeout(5)
        connection.connect(str(path))
        connection.sendall(b"show stat -1 4 -1\n")
        text = b"".join(iter(lambda: connection.recv(65_536), b"")).decode()
        rows = csv.DictReader(io.StringIO(text.removeprefix("# ")))
        return sum(row["status"] == "UP" and row["act"] == "1" for row in rows)
    return 0


def with_servers(shipped: str, *servers: str) -> str:
    """Return a configuration of `deploy/` with these servers, such as `    server 10.0.0.1:8000`, and their options."""
    example = re.compile(r"(?:^    server (?:\w+ )?10\.77\.0\.\d+:8000(.*\n))+", re.MULTILINE)
    return example.sub(lambda found: "".join(server + found[1] for server in servers), shipped)


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _on_one_core(host: Host) -> list[str]:
    """Return the command that runs another one on one core: a replica with less than that must not count more."""
    if sys.platform != "linux":
        return []
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", str(cores[int(host.address.rpartition(".")[2]) % len(cores)])]


def _listens(process: psutil.Process) -> bool:
    """Return whether a process, which may have ended, has a listening TCP socket."""
    own = Path(f"/proc/{process.pid}")
    try:
        rows = [row.split() for row in (own / "net/tcp").read_text().splitlines()[1:]]
        sockets = {str(file.readlink()) for file in (own / "fd").iterdir()}
    except FileNotFoundError:
        return False
    return any(f"socket:[{row[9]}]" in sockets for row in rows if row[3] == "0A")  # LISTEN


def wait_until(condition: Callable[[], bool], description: str, seconds: float = START_S) -> None:
    """Wait for a condition. Raises `BenchmarkError` with its description after this time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkError(f"not within {seconds:g} s: {description}")
        time.sleep(0.02)
