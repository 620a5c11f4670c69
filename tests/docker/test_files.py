"""The Dockerfiles and the compose file: pinned, minimal, unprivileged and consistent."""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from compose_spec import PyCompose
from prometheus_client.parser import text_string_to_metric_families

from serving.__main__ import COMMANDS
from serving.config import ServiceSettings
from tests.support.service import Service, eventually

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = DOCKER / "serving.Dockerfile"
TRAINING = DOCKER / "training.Dockerfile"
BOTH = pytest.mark.parametrize("dockerfile", [DOCKERFILE, TRAINING], ids=["serving", "training"])
PINNED = re.compile(r"[a-z/]+:v?\d+\.\d+\.\d+[a-z-]*")
"""An image with its full version; `latest` or `3.11` change over time."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return document


@pytest.mark.parametrize("variable", ["SERVING_CPUS", "LOAD_RATE"])
def test_the_compose_file_is_valid(variable: str) -> None:
    """By the Compose Specification, with the defaults of its variables, and with others."""
    text = (DOCKER / "compose.yaml").read_text()
    with_variable = re.sub(rf"\$\{{{variable}:-[^}}]*\}}", "4", text)
    assert with_variable != text
    PyCompose.from_yaml(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", with_variable)).validate()


def instructions(name: str, dockerfile: Path = DOCKERFILE) -> list[str]:
    """The arguments of every `name` instruction, continuation lines joined."""
    text = dockerfile.read_text().replace("\\\n", " ")
    return [line.split(maxsplit=1)[1] for line in text.splitlines() if line.startswith(f"{name} ")]


@BOTH
def test_hadolint_reports_nothing(dockerfile: Path) -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    run = subprocess.run([hadolint, dockerfile], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_stage_starts_from_the_same_pinned_image() -> None:
    images = {
        argument.split(" AS ")[0]
        for dockerfile in (DOCKERFILE, TRAINING)
        for argument in instructions("FROM", dockerfile)
    }
    assert len(images) == 1
    assert PINNED.fullmatch(images.pop())


def copied(dockerfile: Path = DOCKERFILE) -> set[str]:
    """What the build copies from the repository."""
    own = [argument.split() for argument in instructions("COPY", dockerfile) if "--from" not in argument]
    return {source for words in own for source in words[:-1] if not source.startswith("--")}


@BOTH
def test_the_build_sees_exactly_what_it_copies(dockerfile: Path) -> None:
    ignore_file = dockerfile.with_name(f"{dockerfile.name}.dockerignore")
    allowed = {line[1:] for line in ignore_file.read_text().splitlines() if line.startswith("!")}
    assert copied(dockerfile) == allowed
    assert all((ROOT / path).exists() for path in allowed)


def test_the_service_is_built_from_what_is_copied_alone(tmp_path: Path) -> None:
    """And its files can be read by the image's user, also where the umask of the checkout was 077."""
    for source in copied():
        (tmp_path / source).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, tmp_path / source)
    subprocess.run(["chmod", "-R", "go-rwx", tmp_path], check=True)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "."], cwd=tmp_path, check=True)
    (built,) = tmp_path.glob("*.whl")
    packed = {Path(name).parts[0] for name in zipfile.ZipFile(built).namelist()}
    assert {name for name in packed if not name.endswith(".dist-info")} == {"serving", "distillery"}
    paths = [*(ROOT / "serving").rglob("*.py"), *(ROOT / "serving/http/page/files").iterdir()]
    modules = {path.relative_to(ROOT).as_posix() for path in paths}
    assert modules <= set(zipfile.ZipFile(built).namelist())
    target = tmp_path / "installed"
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", target, built], check=True, umask=0o022
    )
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in target.rglob("*"))


def test_the_service_is_the_first_process_and_not_root() -> None:
    # a shell would not forward SIGTERM
    assert instructions("ENTRYPOINT") == ['["distillery-serve"]']
    user, _, group = instructions("USER")[0].partition(":")
    assert int(user) >= 1000
    assert int(group) >= 1000


def test_every_setting_in_docker_exists_in_the_service(compose: dict[str, Any]) -> None:
    in_image = tomllib.loads((DOCKER / "defaults.toml").read_text())
    in_compose = compose["services"]["serving"].get("environment", {})
    settings = {*in_image, *(name.removeprefix("DISTILLERY_").lower().split("__")[0] for name in in_compose)}
    assert settings >= {"host", "port", "models_dir"}
    assert settings <= set(ServiceSettings.model_fields)


def test_the_image_sets_no_variable_that_overrides_a_file() -> None:
    """An option, a variable or a file of the operator wins over the image's defaults, which are a file below all."""
    variables = re.findall(r"\bDISTILLERY_(\w+)=(\S+)", " ".join(instructions("ENV")))
    assert [name for name, _ in variables] == ["DEFAULTS"]
    assert f"COPY --chmod=644 docker/defaults.toml {variables[0][1]}" in DOCKERFILE.read_text()


def test_images_are_pinned(compose: dict[str, Any]) -> None:
    pulled = {name: s["image"] for name, s in compose["services"].items() if "build" not in s}
    assert pulled.pop("load") == compose["services"]["serving"]["image"]  # what is built
    assert set(pulled) == {"prometheus", "alertmanager", "grafana"}
    assert all(PINNED.fullmatch(image) for image in pulled.values()), pulled


def test_ports_are_bound_to_the_loopback_interface(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_service_has_resource_limits_and_no_privileges(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"])
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_one_cpu_is_enough_for_every_service(compose: dict[str, Any]) -> None:
    """Docker refuses a limit above the number of CPUs."""
    limits = [service["deploy"]["resources"]["limits"]["cpus"] for service in compose["services"].values()]
    without_variables = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", limit) for limit in limits]
    assert all(0 < float(limit) <= 1 for limit in without_variables), limits


def test_every_file_that_is_mounted_exists(compose: dict[str, Any]) -> None:
    mounts = [
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service["volumes"]
        if isinstance(volume, str) and volume.startswith(".")
    ]
    assert len(mounts) == 7
    assert all((DOCKER / mount).exists() for mount in mounts), mounts


def test_the_services_refer_to_each_other_by_the_right_names(compose: dict[str, Any]) -> None:
    prometheus = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
    assert prometheus["scrape_configs"][0]["static_configs"][0]["targets"] == ["serving:8000"]
    (alertmanager,) = prometheus["alerting"]["alertmanagers"]
    assert alertmanager["static_configs"][0]["targets"] == ["alertmanager:9093"]
    source = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    provider = yaml.safe_load((DOCKER / "grafana/provisioning/dashboards/distillery.yml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    assert f"./grafana/dashboards:{folder}:ro" in compose["services"]["grafana"]["volumes"]
    assert {"serving", "prometheus", "alertmanager"} <= set(compose["services"])


def test_the_health_check_is_a_command_of_the_service() -> None:
    (check,) = instructions("HEALTHCHECK")
    program, *arguments = json.loads(check.partition(" CMD ")[2])
    assert program == "distillery-serve"
    assert arguments[0] in COMMANDS


def test_the_load_profile_sends_correct_requests_to_every_model(service: Service) -> None:
    """As the container runs it: a program and a sheet of digits, with Pillow alone."""
    command = [sys.executable, "load.py", service.url, ROOT / "benchmarks/load/digits.png", "50"]

    def counts() -> dict[str, float]:
        metrics = text_string_to_metric_families(httpx.get(f"{service.url}/metrics").text)
        return {
            sample.labels["model"]: sample.value
            for family in metrics
            for sample in family.samples
            if sample.name == "distillery_images_total"
        }

    before = counts()
    load = subprocess.Popen(command, cwd=DOCKER, env={"PATH": ""}, stdout=subprocess.PIPE, text=True)
    try:
        eventually(lambda: all(counts()[model] >= before[model] + 20 for model in before))
    finally:
        load.terminate()
        output, _ = load.communicate()
    assert not output
