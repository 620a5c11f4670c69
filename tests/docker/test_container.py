"""The image of the service, built from its Dockerfile and run as compose.yaml runs it, by buildah and podman.

One container for all tests; the last one stops it. Its base image is made from Debian's packages (`.ci/build-image`).
"""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from packaging.utils import canonicalize_name
from prometheus_client.parser import text_string_to_metric_families

from tests.support.otlp_receiver import Receiver, receiving
from tests.support.service import ROOT, eventually, free_port
from tests.support.training.samples import sample_test

PROGRAMS = "buildah", "mmdebstrap", "podman", "runc"
MISSING = [name for name in PROGRAMS if not shutil.which(name)]
IMAGE = "localhost/distillery-serving"
MAX_BYTES = 250_000_000
"""Of the image as a registry keeps it, compressed, and the models."""
PATIENCE_S = 60
"""For the start; the time it takes is printed, not judged."""

pytestmark = [
    pytest.mark.container,
    pytest.mark.timeout(900),  # the build, on a busy machine
    pytest.mark.skipif(bool(MISSING), reason=f"needs Debian's {', '.join(MISSING)} (make system)"),
]


def podman(*arguments: str | Path) -> str:
    """Run podman; return its output without the last line break."""
    environment = os.environ | {"CONTAINERS_CONF": str(ROOT / ".ci/containers.conf")}
    run = subprocess.run(["podman", *arguments], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"podman {arguments[0]}: {run.stdout}{run.stderr}"
    return run.stdout.rstrip("\n")


@dataclass
class Container:
    """A running container; its network is the machine's."""

    id: str
    url: str
    grpc: str
    models: Path
    collector: Receiver
    startup_s: float
    """From its start to the first `/health/ready`."""

    def state(self) -> dict[str, Any]:
        (found,) = json.loads(podman("container", "inspect", self.id))
        state: dict[str, Any] = found["State"]
        return state

    def status(self) -> dict[str, str]:
        """Return what the kernel says of its first process: /proc/PID/status."""
        text = Path("/proc", str(self.state()["Pid"]), "status").read_text()
        return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)

    def python(self, program: str) -> str:
        """Run a program with the Python of the image; return its output."""
        return podman("exec", self.id, "python", "-c", program)


def options_of_compose() -> list[str]:
    """Return the options of `podman run` that stand for those of the service in compose.yaml."""
    text = (ROOT / "docker/compose.yaml").read_text()
    service = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))["services"]["serving"]
    limits = service["deploy"]["resources"]["limits"]
    assert service["read_only"]
    return [
        "--read-only",
        *(f"--tmpfs={mount}" for mount in service["tmpfs"]),
        *(f"--cap-drop={name}" for name in service["cap_drop"]),
        *(f"--security-opt={option.removesuffix(':true')}" for option in service["security_opt"]),
        f"--cpus={limits['cpus']}",
        f"--memory={limits['memory']}",
        f"--pids-limit={limits['pids']}",
        f"--stop-timeout={service['stop_grace_period'].removesuffix('s')}",
    ]


@pytest.fixture(scope="module")
def container(model_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A container of the image with four models; spans go to a collector of the test."""
    subprocess.run([ROOT / ".ci/build-image", "serving"], check=True)
    folder = tmp_path_factory.mktemp("container")
    models = shutil.copytree(model_repository, folder / "models")
    # Options are above the file, and the file is above the image's defaults.
    (folder / "serving.toml").write_text('host = "127.0.0.1"\nport = 1\n')
    subprocess.run(["chmod", "-R", "go+rX", folder], check=True)  # for the user of the image
    url, grpc_address = f"http://127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    with receiving() as collector:
        id_ = podman(
            "run",
            "--detach",
            "--network=host",
            *options_of_compose(),
            f"--volume={models}:/models:ro",
            f"--volume={folder / 'serving.toml'}:/etc/serving.toml:ro",
            f"--env=OTEL_EXPORTER_OTLP_ENDPOINT={collector.endpoint}",
            "--env=OTEL_BSP_SCHEDULE_DELAY=50",
            IMAGE,
            "--config=/etc/serving.toml",
            f"--port={url.rpartition(':')[2]}",
            f"--grpc-port={grpc_address.rpartition(':')[2]}",
            "--tracing",
        )
        try:
            ready = eventually_ready(url, id_)
            container = Container(id_, url, grpc_address, models, collector, startup_s=0)
            started = datetime.fromisoformat(container.state()["StartedAt"])
            container.startup_s = (ready - started).total_seconds()
            yield container
        finally:
            podman("rm", "--force", "--time", "0", id_)


def eventually_ready(url: str, id_: str) -> datetime:
    """Return when `/health/ready` has first responded with 200."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return datetime.now(UTC)
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise AssertionError(f"not ready after {PATIENCE_S} s: {podman('logs', id_)}")


def test_the_time_to_the_first_ready_response_is_measured(
    container: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\ncontainer: ready {container.startup_s:.2f} s after its start, with tracing, on 1 CPU")
    assert 0 < container.startup_s < PATIENCE_S


def test_every_model_predicts_digits_and_is_counted_in_the_metrics(container: Container) -> None:
    digits = sample_test()
    body = {"images": digits.images.tolist()}
    models = [path.name for path in container.models.iterdir() if path.is_dir()]
    assert len(models) == 4
    for model in models:
        answer = httpx.post(f"{container.url}/predict/{model}", json=body, timeout=PATIENCE_S)
        assert answer.status_code == 200, answer.text
        predicted = [prediction["digit"] for prediction in answer.json()["predictions"]]
        correct = sum(a == b for a, b in zip(predicted, digits.labels.tolist(), strict=True))
        assert correct > len(predicted) / 2, model

    def counted() -> dict[str, float]:
        families = text_string_to_metric_families(httpx.get(f"{container.url}/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        images = [sample for sample in samples if sample.name == "distillery_images_total"]
        return {sample.labels["model"]: sample.value for sample in images}

    eventually(lambda: counted() == dict.fromkeys(models, len(digits.labels)))  # once published


def test_every_model_is_ready_over_grpc(container: Container) -> None:
    with grpc.insecure_channel(container.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for model in (path.name for path in container.models.iterdir() if path.is_dir()):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=model), timeout=PATIENCE_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, model


def test_the_page_and_its_files_are_served(container: Container) -> None:
    page = Path(str(files("serving.http.page"))) / "files"
    answer = httpx.get(container.url, headers={"Accept": "text/html"})
    assert answer.content == (page / "index.html").read_bytes()
    assert "default-src" in answer.headers["Content-Security-Policy"]
    for name in ("main.js", "style.css"):
        assert httpx.get(f"{container.url}/page/{name}").content == (page / name).read_bytes()


def test_the_health_check_of_the_image_finds_the_service(container: Container) -> None:
    for path in ("/health/live", "/health/ready"):
        assert httpx.get(container.url + path).status_code == 200
    (image,) = json.loads(podman("image", "inspect", IMAGE))
    kind, *command = image["HealthCheck" if "HealthCheck" in image else "Healthcheck"]["Test"]
    assert kind == "CMD"
    podman("exec", container.id, *command)


def test_a_request_has_a_span(container: Container) -> None:
    sent = {"X-Request-ID": "of-the-container"}
    image = {"image": sample_test().images[0].tolist()}
    assert httpx.post(f"{container.url}/predict", json=image, headers=sent).status_code == 200
    eventually(lambda: container.collector.of("of-the-container"), PATIENCE_S)


def test_the_service_is_neither_root_nor_privileged_and_cannot_write_its_root(container: Container) -> None:
    status = container.status()
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"10001"}
    capabilities = {
        name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    }
    assert not any(capabilities.values()), capabilities
    assert status["NoNewPrivs"] == "1"
    assert status["NSpid"].split()[-1] == "1"  # receives the signals of the engine
    mounts = Path("/proc", str(container.state()["Pid"]), "mountinfo").read_text().splitlines()
    options = {fields[4]: fields[5].split(",") for fields in map(str.split, mounts)}
    assert "ro" in options["/"]
    assert "ro" in options["/models"]
    assert "rw" in options["/tmp"]


def test_the_image_contains_the_packages_of_the_bill_of_materials_and_no_torch(container: Container) -> None:
    listed = json.loads((ROOT / "docker/sbom.cdx.json").read_text())["components"]
    expected = {f"{canonicalize_name(one['name'])}=={one['version']}" for one in listed}
    program = "import importlib.metadata as m; [print(d.name, d.version) for d in m.distributions()]"
    found = {
        line.partition(" ")[0]: line.partition(" ")[2] for line in container.python(program).splitlines()
    }
    del found["distillery"]
    assert {f"{canonicalize_name(name)}=={version}" for name, version in found.items()} == expected
    names = ("torch", "torchvision", "onnx", "pip", "training", "export", "benchmarks")
    program = f"import importlib.util as u; print([name for name in {names} if u.find_spec(name)])"
    assert container.python(program) == "[]"


def test_the_compressed_image_and_the_models_take_at_most_250_mb(
    container: Container, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    podman("save", "--quiet", "--format=docker-dir", "--compress", f"--output={tmp_path / 'image'}", IMAGE)
    manifest = json.loads((tmp_path / "image/manifest.json").read_text())
    layers = [layer["size"] for layer in manifest["layers"]]
    (image,) = json.loads(podman("image", "inspect", IMAGE))
    models = sum(path.stat().st_size for path in container.models.rglob("*") if path.is_file())
    with capsys.disabled():
        sizes = f"{sum(layers) / 1e6:.0f} MB compressed, {image['Size'] / 1e6:.0f} MB unpacked"
        print(f"\nimage: {sizes}; layers, compressed: {[f'{size / 1e6:.1f}' for size in layers]}")
    assert sum(layers) + models <= MAX_BYTES


def test_sigterm_ends_the_service_after_the_request_in_flight_within_its_grace_period(
    container: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last test. After the grace period the engine would kill it: status 137."""
    stops: list[subprocess.Popen[bytes]] = []

    def accepts() -> bool:
        try:
            return httpx.get(f"{container.url}/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def body() -> Iterator[bytes]:
        content = json.dumps({"image": sample_test().images[0].tolist()}).encode()
        yield content[:100]
        time.sleep(0.2)  # a process closes connections on which it has read nothing yet
        stops.append(subprocess.Popen(["podman", "stop", container.id], stdout=subprocess.DEVNULL))
        eventually(lambda: not accepts(), PATIENCE_S)
        yield content[100:]

    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{container.url}/predict", content=body(), headers=headers, timeout=PATIENCE_S)
    responded = time.monotonic()
    assert answer.status_code == 200
    assert answer.headers["Connection"] == "close"
    (stop,) = stops
    assert stop.wait(PATIENCE_S) == 0
    with capsys.disabled():
        print(f"\ncontainer: stopped {time.monotonic() - responded:.2f} s after its last response")
    assert container.state()["ExitCode"] == 0
    assert not container.state()["OOMKilled"]
