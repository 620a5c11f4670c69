"""The two applications of `serving.ray` on a Ray cluster: the head on the entry, a node with one CPU on each host."""

import os
import secrets
import shutil
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import psutil
import yaml

from benchmarks.cluster.balancers import DEPLOY, servers_up, wait_until
from benchmarks.cluster.engines import PORT, Engine, Site
from benchmarks.cluster.hosts import Host
from benchmarks.cluster.quota import cpu_quota
from benchmarks.errors import BenchmarkError
from benchmarks.systems.servers import ROOT, own_memory_mib

_OBJECT_STORE_BYTES = 80_000_000
"""The least that Ray accepts is 75 MiB."""
_CHANGE_S = 300.0
"""For a change of the cluster: Ray starts a process for each replica, in seconds of CPU time."""
_TRIES = 3
"""On a busy machine, Ray's own limits of 30 s for a node to start, and of less for its proxy, are too short."""


class _Ray(Engine):
    application: ClassVar[str]
    """Its configuration in `deploy/ray`."""
    cpus: ClassVar[int] = 1
    """Of each node, as Ray counts them: places for replicas."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._stack = ExitStack()
        self._nodes: dict[Host, subprocess.Popen[bytes]] = {}
        self._hosts: list[Host] = []
        self._changes = 0
        self._limited: dict[Host, set[int]] = {}
        self._token = secrets.token_hex()

    def __exit__(self, *_: object) -> None:
        for host, process in self._nodes.items():
            host.kill_processes()
            process.wait()
        self._stack.close()

    @classmethod
    def version(cls) -> str:
        return version("ray")

    def start(self, hosts: Sequence[Host]) -> None:
        self.start_nodes(hosts)
        self.deploy()
        self.wait_for(len(hosts))

    def start_nodes(self, hosts: Sequence[Host]) -> None:
        """Start Ray on the entry, as the head without a CPU, and on these hosts."""
        self._start_node(self.site.entry, "--head", "--port", "6379", "--include-dashboard", "false", cpus=0)
        for host in hosts:  # nodes that start at the same time take the same names for their sockets
            self._join(host)

    def add(self, host: Host) -> None:
        self._join(host)
        self.wait_for(len(self._hosts))

    def remove(self, host: Host) -> None:
        self._run(
            "ray",
            *("drain-node", "--address", self.address, "--node-id", _node_id(host)),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the host leaves"),
            *("--deadline-remaining-seconds", "1"),
        )
        wait_until(lambda: not list(self.replica_processes(host)), f"{host.name} drains", _CHANGE_S)
        self._hosts.remove(host)
        node = self._nodes.pop(host)
        node.terminate()
        node.wait()
        host.kill_processes()
        self.wait_for(len(self._hosts))

    def restart(self) -> None:
        before = {process.pid for host in self._hosts for process in self.replica_processes(host)}
        self._changes += 1
        self.deploy()
        wait_until(lambda: not any(map(psutil.pid_exists, before)), "old replicas end", _CHANGE_S)
        self.wait_for(len(self._hosts))

    def kill(self, host: Host) -> None:
        for process in list(self.replica_processes(host)):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def recover(self, host: Host) -> None:
        wait_until(lambda: bool(list(self.replica_processes(host))), f"{host.name} has a replica", _CHANGE_S)
        self.wait_for(len(self._hosts))

    def kill_host(self, host: Host) -> None:
        host.kill_processes()
        self._nodes.pop(host).wait()
        self._hosts.remove(host)

    def recover_host(self, host: Host) -> None:
        self.add(host)

    def memory_mib(self) -> float:
        return sum(map(own_memory_mib, self.control_plane()))

    def control_plane(self) -> list[psutil.Process]:
        """Return all processes but the replicas: Ray's own on every node, and HAProxy."""
        hosts = (*self._hosts, self.site.entry)
        replicas = {process.pid for host in hosts for process in self.replica_processes(host)}
        return [process for host in hosts for process in host.processes() if process.pid not in replicas]

    @abstractmethod
    def replica_processes(self, host: Host) -> Iterator[psutil.Process]:
        """Yield the processes of the replica of a host."""

    @abstractmethod
    def balancer_socket(self) -> Path:
        """Return the socket of the entry's HAProxy."""

    def settings(self) -> dict[str, Any]:
        """Return the arguments of the application."""
        level = "warning" if self._changes % 2 else "error"  # a changed setting restarts the replicas
        return {"models_dir": str(self.site.models_dir.resolve()), "log_level": level}

    def configuration(self) -> dict[str, Any]:
        """Return that of `deploy/ray` with these settings, and the proxies of Ray Serve on the entry alone."""
        configuration: dict[str, Any] = yaml.safe_load((DEPLOY / "ray" / self.application).read_text())
        configuration["applications"][0]["args"] = self.settings()
        if configuration["proxy_location"] != "Disabled":
            configuration["proxy_location"] = "HeadOnly"
        return configuration

    def deploy(self) -> None:
        """Deploy the application, or change it."""
        path = self.site.folder / "application.yaml"
        path.write_text(yaml.safe_dump(self.configuration()))
        for attempt in range(1, _TRIES + 1):
            try:
                self._run("serve", "run", "--non-blocking", str(path))
            except BenchmarkError:
                if attempt == _TRIES:
                    raise
            else:
                return

    def wait_for(self, replicas: int) -> None:
        """Return when the balancer sends requests to this number of replicas."""
        wait_until(
            lambda: servers_up(self.balancer_socket()) == replicas,
            f"{self.name} has {replicas} replicas that are up",
            seconds=_CHANGE_S,
        )
        for host in self._hosts:
            self._limit(host)

    def _limit(self, host: Host) -> None:
        """Give the processes of a host's replica their CPU quota, unless they have it."""
        processes = list(self.replica_processes(host))
        if self.site.cores and (found := {process.pid for process in processes}) != self._limited.get(host):
            self._stack.enter_context(cpu_quota(processes, self.site.cores))
            self._limited[host] = found

    @property
    def address(self) -> str:
        """Of the control store, for `ray start` and clients."""
        return f"{self.site.entry.address}:6379"

    def _join(self, host: Host) -> None:
        self._start_node(host, "--address", self.address, cpus=self.cpus)
        self._hosts.append(host)

    def _start_node(self, host: Host, *arguments: str, cpus: int) -> None:
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", *arguments, "--block"),
            *("--node-ip-address", host.address, "--num-cpus", str(cpus)),
            *("--object-store-memory", str(_OBJECT_STORE_BYTES), "--temp-dir", str(self._folder)),
            *("--include-log-monitor", "false", "--disable-usage-stats"),
        ]
        path = self.site.folder / f"{host.name}.log"
        for _ in range(_TRIES):
            with path.open("wb") as log, host.entered():
                node = subprocess.Popen(
                    command, env=self.environment(host), stdout=log, stderr=log, start_new_session=True
                )
            self._nodes[host] = node
            wait_until(
                lambda node=node: node.poll() is not None or "Ray runtime started" in path.read_text(),  # type: ignore[misc]
                f"Ray runs on {host.name}",
                _CHANGE_S,
            )
            if node.returncode is None:
                return
            host.kill_processes()
        raise BenchmarkError(f"Ray ended on {host.name}: {path.read_text()[-2000:]}")

    @property
    def _folder(self) -> Path:
        return self.site.folder / "ray"

    def folder_of(self, host: Host) -> Path:
        """Return the folder of a host's temporary files."""
        folder = self.site.folder / host.name
        folder.mkdir(exist_ok=True)
        return folder

    def environment(self, host: Host) -> dict[str, str]:
        """Return the variables of a process of Ray, or one that connects to it."""
        folder = self.folder_of(host)
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RAY_", "DISTILLERY_", "PYTEST_"))
        }
        return inherited | {
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            "RAY_TMPDIR": str(self._folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": f"{self.site.shutdown_delay_s:g}",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        }

    def _run(self, program: str, *arguments: str) -> None:
        """Run a program of Ray on the entry. Raises `BenchmarkError`."""
        command = shutil.which(program, path=str(Path(sys.executable).parent))
        if command is None:
            raise BenchmarkError(f"there is no program {program}; install the extra ray")
        environment = self.environment(self.site.entry) | {"RAY_ADDRESS": self.address}
        with self.site.entry.entered():
            done = subprocess.run(
                [command, *arguments],
                env=environment,
                capture_output=True,
                text=True,
                timeout=_CHANGE_S,
                check=False,
            )
        if done.returncode:
            raise BenchmarkError(
                f"{program} {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
            )


class RayNodes(_Ray):
    """`serving.ray.nodes`: a complete service on each node; requests do not pass through Ray."""

    name = "ray-nodes"
    application = "nodes.yaml"

    @property
    def url(self) -> str:
        return f"http://{self.site.entry.address}:8080"

    def settings(self) -> dict[str, Any]:
        return super().settings() | {
            "port": PORT,
            "api_servers": 1,
            "shutdown_delay": self.site.shutdown_delay_s,
        }

    def replica_processes(self, host: Host) -> Iterator[psutil.Process]:
        for process in host.processes():
            with suppress(psutil.NoSuchProcess):
                if "serving.ray.process" in process.cmdline():
                    yield process

    def balancer_socket(self) -> Path:
        return _newest(self.folder_of(self.site.entry).glob("distillery-haproxy-*/admin.sock"))


class RayReplicas(_Ray):
    """`serving.ray.replicas`: the ASGI application in replicas of Ray Serve, behind its HAProxy."""

    name = "ray-replicas"
    application = "replicas.yaml"

    @property
    def url(self) -> str:
        return f"http://{self.site.entry.address}:{PORT}"

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"replicas": len(self._hosts)}

    def add(self, host: Host) -> None:
        self._join(host)
        self.deploy()
        self.wait_for(len(self._hosts))

    def replica_processes(self, host: Host) -> Iterator[psutil.Process]:
        for process in host.processes():
            with suppress(psutil.NoSuchProcess):
                if any("ServeReplica:" in part and ":replica" in part for part in process.cmdline()):
                    yield process

    def balancer_socket(self) -> Path:
        # In a folder named by the node's id.
        return _newest(self.folder_of(self.site.entry).glob("*/admin.sock"))


RAY_ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (RayNodes, RayReplicas)}


def _newest(paths: Iterable[Path]) -> Path:
    return max(paths, key=lambda path: path.stat().st_mtime, default=Path("missing"))


def _node_id(host: Host) -> str:
    """Return the id of the Ray node of a host, which is among the arguments of its raylet."""
    [raylet] = [process for process in host.processes() if process.name() == "raylet"]
    [node_id] = [part.partition("=")[2] for part in raylet.cmdline() if part.startswith("--node_id=")]
    return node_id
