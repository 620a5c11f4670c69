"""The locked requirements of the serving image agree with pyproject.toml and constraints.txt."""

import json
import re
import tomllib
from typing import NamedTuple

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.service import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
IN_IMAGE = {
    "implementation_name": "cpython",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "python_full_version": "3.11.15",
    "python_version": "3.11",
    "sys_platform": "linux",
}
EXTRAS = "grpc", "serving", "signed", "tracing"
INSTALL = "python -m pip --python /opt/venv/bin/python install --no-cache-dir"


class Locked(NamedTuple):
    """One package of a lock file."""

    version: str
    marker: str | None
    hashes: set[str]


def locked(name: str) -> dict[str, Locked]:
    """Return the packages; every line is one package with hashes, no option, no address."""
    text = (ROOT / "docker" / name).read_text()
    entries = text.replace("\\\n", " ").splitlines()
    found = [
        re.fullmatch(r"(\S+)==(\S+)(?: ; ([^#]*?))?((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", e)
        for e in entries
    ]
    assert all(found), name
    return {
        canonicalize_name(each[1]): Locked(each[2], each[3], set(re.findall(r"[0-9a-f]{64}", each[4])))
        for each in found
        if each
    }


def test_the_locked_requirements_are_those_of_the_extras_in_the_image_as_constrained() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    constraints = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines}
    versions = {name: package.version for name, package in locked("requirements.txt").items()}
    differing = {n: v for n, v in versions.items() if constraints.get(n, v) != v}
    assert not differing, "run make lock-image"
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), line
    assert not {"torch", "torchvision", "onnx"} & set(versions)


def test_the_build_requirements_are_locked() -> None:
    (line,) = PROJECT["build-system"]["requires"]
    assert Requirement(line).specifier.contains(locked("build-requirements.txt")["setuptools"].version)
    assert line in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize(
    "option", ["--require-hashes -r requirements.txt", "--no-deps --no-index wheels/*.whl"]
)
def test_the_image_installs_nothing_without_a_hash(option: str) -> None:
    text = (ROOT / "docker/serving.Dockerfile").read_text()
    assert f"{INSTALL} {option}" in text
    assert len(re.findall(r"pip\b[^\n]* install", text)) == 3


def test_the_bill_of_materials_lists_the_locked_packages_with_licences_and_hashes() -> None:
    document = json.loads((ROOT / "docker/sbom.cdx.json").read_text())
    packages = locked("requirements.txt")
    in_image = {n: p for n, p in packages.items() if not p.marker or Marker(p.marker).evaluate(IN_IMAGE)}
    listed = {canonicalize_name(component["name"]): component for component in document["components"]}
    versions = {name: component["version"] for name, component in listed.items()}
    assert versions == {name: package.version for name, package in in_image.items()}, "run make sbom"
    for name, component in listed.items():
        hashes = {
            one["content"]
            for reference in component["externalReferences"]
            if reference["type"] == "distribution"
            for one in reference.get("hashes", [])
        }
        assert hashes == in_image[name].hashes, "run make sbom"
    assert [name for name, component in listed.items() if not component.get("licenses")] == ["protobuf"]
    assert document["metadata"]["component"]["version"] == PROJECT["project"]["version"]
    (own,) = [entry for entry in document["dependencies"] if entry["ref"] == "root-component"]
    assert f"onnxruntime=={versions['onnxruntime']}" in own["dependsOn"]
    assert not {"serialNumber", "timestamp"} & {*document, *document["metadata"]}  # the same file each time
