"""The service as containers, orchestrators and operators start it, and what they get wrong."""

import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

import distillery
from serving.__main__ import COMMANDS
from tests.support.root import as_root, root_command
from tests.support.service import (
    ROOT,
    eventually,
    failed_start,
    starting_service,
)
from tests.support.training.samples import sample_test

ONE = {"image": sample_test().images[0].tolist()}
SERVICE_LINKS = {
    "DISTILLERY_SERVICE_HOST": "10.0.0.1",
    "DISTILLERY_PORT": "tcp://10.0.0.1:8000",
    "DISTILLERY_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "DISTILLERY_GRPC_PORT": "tcp://10.0.0.1:8001",
}


@pytest.fixture
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary folder of the services and the health checks of a test."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def health(*arguments: str) -> int:
    """Run `distillery-serve health` in this process and return its status."""
    return distillery.main("distillery-serve", COMMANDS, arguments=["health", *arguments])


def shell(script: str = "") -> tuple[str, ...]:
    """A command that runs another one after a shell script, and whom permissions restrict even if this is root."""
    drop = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
    return (*drop, "sh", "-c", f'{script}\nexec "$@"', "sh")


def loopback() -> str:
    """The loopback address of IPv6, of IPv4 where there is none."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return "127.0.0.1"
    return "::1"


@pytest.mark.usefixtures("own_temporary_folder")
def test_file_below_environment_below_option_and_the_image_below_all(
    one_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As in a pod beside a Service of the same name, from a folder that cannot be written, without a home."""
    folder = tmp_path / "a place"
    models = folder / "some models"
    (models / "..data").mkdir(parents=True)
    shutil.copytree(one_model / "student", models / "..data" / "student")
    (models / "student").symlink_to("..data/student")
    (models / "lost+found").mkdir(mode=0)
    host = loopback()
    (folder / "serving.toml").write_text(
        f'host = "{host}"\nport = 1\nmodels_dir = "some models"\napi_servers = 1\n'
    )
    folder.chmod(0o555)
    environment = SERVICE_LINKS | {
        "DISTILLERY_DEFAULTS": str(ROOT / "docker/defaults.toml"),
        "DISTILLERY_CONFIG": "serving.toml",
        "DISTILLERY_API_SERVERS": "2",
        "HOME": None,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    options = {"port": None, "prefix": shell(), "environment": environment, "cwd": folder}
    with starting_service(None, "--port", "0", **options) as service:
        url = service.wait_until_ready()
        assert url.startswith("http://[::1]:" if ":" in host else "http://127.0.0.1:")
        assert len(service.children()) == 2
        assert httpx.post(f"{url}/predict", json=ONE, timeout=10).status_code == 200
        assert health() == 0
        service.output.close()  # as `distillery-serve | head -1`
        first = service.children()[0]
        os.kill(first, signal.SIGKILL)
        eventually(lambda: len(service.children()) == 2 and first not in service.children())
        assert httpx.post(f"{url}/predict", json=ONE, timeout=10).status_code == 200
        errors = service.end()[1].splitlines()
        assert service.process.returncode == 0
        assert len(errors) == 2, errors
        assert errors[0].startswith(
            "distillery-serve: ignored DISTILLERY_GRPC_PORT=tcp://10.0.0.1:8001, DISTILLERY_PORT"
        )
        assert "some models: skipped ..data, lost+found: not a model" in errors[1]
    folder.chmod(0o755)
    assert health() == 1
    assert "no service of this user is ready on this machine" in capfd.readouterr().err


@pytest.mark.usefixtures("own_temporary_folder")
def test_the_health_check_names_what_is_wrong(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILLERY_PORT", "of the service alone")
    with not_ready() as port:
        assert health("--url", f"http://0.0.0.0:{port}") == 1  # as the ready line has it
        assert f"http://0.0.0.0:{port} is not ready: 503 loading" in capfd.readouterr().err
        assert health("--url", f"ftp://127.0.0.1:{port}") == 1
        assert "is not the address of a service" in capfd.readouterr().err
        assert health("--url", f"https://127.0.0.1:{port}") == 1
        assert f"https://127.0.0.1:{port} does not respond: [SSL" in capfd.readouterr().err
    assert health("--url", f"http://127.0.0.1:{port}") == 1
    assert f"http://127.0.0.1:{port} does not respond: [Errno" in capfd.readouterr().err


def test_the_health_check_finds_the_service_that_started_last(
    own_temporary_folder: Path,
) -> None:
    """Not one that was killed before and left its folder."""
    with not_ready(200) as port, not_ready() as other:
        for number, (name, found) in enumerate({"killed": other, "own": port}.items()):
            file = own_temporary_folder / f"distillery-address-{name}" / "url"
            file.parent.mkdir()
            file.write_text(f"http://127.0.0.1:{found}")
            os.utime(file, (number, number))
        assert health() == 0


def test_the_address_that_another_user_has_left_is_not_used(
    own_temporary_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with not_ready(200) as port:
        file = own_temporary_folder / "distillery-address-other" / "url"
        file.parent.mkdir()
        file.write_text(f"http://127.0.0.1:{port}")
        assert health() == 0
        monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
        assert health() == 1
        assert "no service of this user is ready" in capfd.readouterr().err


@contextmanager
def not_ready(status: int = 503) -> Iterator[int]:
    """A server that responds to all requests with one status; yields its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"loading")

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_without_memory_for_the_metrics_the_error_is_one_line(one_model: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    error = failed_start(one_model, setup=limit)
    assert error.endswith("bytes of shared memory: File too large\n")


READ_ONLY = """
    exec unshare --mount sh -ec '
        mount --make-rprivate /
        for place in / /tmp /var/tmp /dev/shm "$4"; do
            if mountpoint -q "$place"; then mount -o remount,ro,bind "$place"; fi
        done
        if [ "$1" ]; then mount -t tmpfs tmpfs "$1"; fi
        cd /
        TMPDIR=$1 exec "$2" -m serving --models-dir "$3" --port 0 --api-servers 1 $5
    ' sh "$@" 2>&1
"""


def on_read_only_root(models_dir: Path, *flags: str, tmpfs: Path | None = None) -> tuple[int, list[str]]:
    """Run a service where only `tmpfs` can be written, until it is ready; return its exit status and its output."""
    arguments = (str(tmpfs or ""), sys.executable, models_dir, ROOT, " ".join(flags))
    with subprocess.Popen(root_command(READ_ONLY, *arguments), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "ready at" in line:
                process.terminate()
        return process.wait(), lines


@pytest.mark.slow
def test_a_read_only_root_needs_a_tmpfs_for_workers_only(one_model: Path, tmp_path: Path) -> None:
    try:
        as_root("unshare --mount mount --make-rprivate /")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine allows no mounts: {error.stderr}")
    status, (line,) = on_read_only_root(one_model, "--executor workers")
    assert status == 1
    assert "no temporary folder can be written" in line
    status, (warning, ready) = on_read_only_root(one_model)
    assert (status, "distillery-serve health will not find this service" in warning) == (0, True)
    assert "ready at" in ready
    for flags in ([], ["--executor workers"]):
        status, (ready,) = on_read_only_root(one_model, *flags, tmpfs=tmp_path)
        assert status == 0
        assert "ready at" in ready


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["inprocess", "workers"])
def test_cuda_that_does_not_start_is_one_line(one_model: Path, executor: str) -> None:
    """As where onnxruntime-gpu finds no driver: only the process that runs the model can tell."""
    setup = "import serving.service; serving.service.resolve_device = lambda device: device"
    flags = ("--executor", executor, "--device", "cuda", "--api-servers", "1")
    with starting_service(one_model, *flags, setup=setup) as service:
        output, errors = service.wait()
    assert (service.process.returncode, output) == (1, "")
    (line,) = errors.splitlines()
    assert line.startswith(
        "distillery-serve: --device cuda: onnxruntime could not start CUDAExecutionProvider"
    )


def open_files(limit: int) -> str:
    """The statement that limits the files which a service may open."""
    return f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))"


def test_too_few_open_files_are_one_line(one_model: Path) -> None:
    error = failed_start(one_model, "--api-servers", "2", setup=open_files(64))
    assert error.startswith(
        "distillery-serve: only 64 files may be open, and 2 API processes need 72, more with"
    )


@pytest.mark.slow
def test_connections_beyond_the_limit_of_open_files_are_closed_and_the_others_served(one_model: Path) -> None:
    with starting_service(one_model, "--api-servers", "1", setup=open_files(80)) as service:
        url = service.wait_until_ready()
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with httpx.Client(base_url=url) as client, ExitStack() as connections:
            assert client.post("/predict", json=ONE).status_code == 200
            opened = [connections.enter_context(socket.create_connection(address)) for _ in range(200)]
            opened[-1].settimeout(5)
            assert opened[-1].recv(1) == b""
            assert client.post("/predict", json=ONE).status_code == 200
        eventually(lambda: answers(url))
        assert service.end() == ("", "")


def answers(url: str) -> bool:
    try:
        return httpx.post(f"{url}/predict", json=ONE).status_code == 200
    except httpx.TransportError:
        return False
