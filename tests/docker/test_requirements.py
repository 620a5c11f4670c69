"""The locked requirements of the serving image agree with pyproject.toml and constraints.txt."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.service import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
INSTALL = "python -m pip --python /opt/venv/bin/python install --no-cache-dir"


def locked(name: str) -> dict[str, str]:
    """Return the version of each package; every line is one package with hashes, no option, no address."""
    text = (ROOT / "docker" / name).read_text()
    entries = text.replace("\\\n", " ").splitlines()
    found = [re.fullmatch(r"(\S+)==(\S+)( ; [^#]*?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*", e) for e in entries]
    assert all(found), name
    return {canonicalize_name(each[1]): each[2] for each in found if each}


def test_the_locked_requirements_are_those_of_the_extras_serving_and_signed_as_constrained() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    constraints = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines}
    versions = locked("requirements.txt")
    differing = {n: v for n, v in versions.items() if constraints.get(n, v) != v}
    assert not differing, "run make lock-image"
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *extras["serving"], *extras["signed"]]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), line
    assert not {"torch", "torchvision", "onnx"} & set(versions)


def test_the_build_requirements_are_locked() -> None:
    (line,) = PROJECT["build-system"]["requires"]
    assert Requirement(line).specifier.contains(locked("build-requirements.txt")["setuptools"])
    assert line in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize(
    "option", ["--require-hashes -r requirements.txt", "--no-deps --no-build-isolation --no-index ."]
)
def test_the_image_installs_nothing_without_a_hash(option: str) -> None:
    text = (ROOT / "docker/serving.Dockerfile").read_text()
    assert f"{INSTALL} {option}" in text
    assert len(re.findall(r"pip\b[^\n]* install", text)) == 3
