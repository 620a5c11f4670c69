"""The manifests of `deploy/kubernetes` as `kubectl kustomize` renders them."""

import json
import os
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from tests.support.service import ROOT

Json = dict[str, Any]

KUBERNETES = ROOT / "deploy/kubernetes"
RENDERED: dict[str, tuple[str, ...]] = {
    "development": (),
    "production": (),
    "operators": ("models-volume", "gateway", "keda", "prometheus-operator"),
    "image volume": ("models-image", "hpa", "ingress", "cert-manager"),
}
"""Overlays without components, and combinations of components with the base, which have all of them together."""
each_rendering = pytest.mark.parametrize("name", RENDERED)
needs_kubectl = pytest.mark.skipif(not which("kubectl"), reason="no kubectl: make system installs it")


@cache
def render_kserve(name: str) -> tuple[Json, ...]:
    """Return the resources for KServe: `stable` or `canary`."""
    return _kustomize(KUBERNETES / "kserve" / name)


@cache
def render(name: str) -> tuple[Json, ...]:
    """Return the resources of an overlay or a combination of `RENDERED`."""
    components = RENDERED[name]
    if not components:
        return _kustomize(KUBERNETES / "overlays" / name)
    with TemporaryDirectory() as folder:
        place = os.path.relpath(KUBERNETES, Path(folder).resolve())
        overlay = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [f"{place}/base"],
            "components": [f"{place}/components/{component}" for component in components],
        }
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(overlay))
        return _kustomize(Path(folder))


def all_resources() -> list[Json]:
    """Return every resource of every rendering, without repetitions."""
    different = {json.dumps(resource, sort_keys=True) for name in RENDERED for resource in render(name)}
    return [json.loads(text) for text in sorted(different)]


def of_kind(kind: str, resources: tuple[Json, ...] | list[Json]) -> list[Json]:
    """Return the resources of one kind."""
    return [resource for resource in resources if resource["kind"] == kind]


def deployment(name: str) -> Json:
    """Return the Deployment of a rendering."""
    [found] = of_kind("Deployment", render(name))
    return found


def pod(name: str) -> Json:
    """Return the specification of the Deployment's pods."""
    spec: Json = deployment(name)["spec"]["template"]["spec"]
    return spec


def serving(name: str) -> Json:
    """Return the container of the service."""
    [container] = pod(name)["containers"]
    found: Json = container
    return found


def containers(name: str) -> Iterator[Json]:
    """Yield all containers of the Deployment."""
    yield from pod(name)["containers"]
    yield from pod(name).get("initContainers", ())


def _kustomize(folder: Path) -> tuple[Json, ...]:
    command = ["kubectl", "kustomize", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert not run.stderr, run.stderr  # deprecated fields
    return tuple(yaml.safe_load_all(run.stdout))
