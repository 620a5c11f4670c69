"""Typed models of the custom resources reproduce them: a field with another name or type would be lost or rejected.

The models for Python accept unknown fields and drop them, so what matters is the round trip. Those of Gateway API are
TypeScript's.
"""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from tests.support.kubernetes import Json, all_resources, needs_kubectl, of_kind

GATEWAY_TYPES = "@kubernetes-models/gateway-api@2.0.0"
TYPESCRIPT = "typescript@5.9.3"
pytestmark = [pytest.mark.slow, needs_kubectl]  # ten seconds to import the models


@pytest.fixture(scope="module")
def models() -> Mapping[str, Any]:
    from cloudcoil.models.cert_manager import v1 as cert_manager  # noqa: PLC0415
    from cloudcoil.models.keda import v1alpha1 as keda  # noqa: PLC0415
    from cloudcoil.models.prometheus_operator import v1 as prometheus_operator  # noqa: PLC0415

    return {
        "Certificate": cert_manager.Certificate,
        "PrometheusRule": prometheus_operator.PrometheusRule,
        "ScaledObject": keda.ScaledObject,
        "ServiceMonitor": prometheus_operator.ServiceMonitor,
    }


def reproduced(models: Mapping[str, Any], resource: Json) -> Json:
    """Return what a model keeps of a resource. Raises ValidationError for a wrong type."""
    model = models[resource["kind"]].model_validate(resource)
    kept: Json = model.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return kept


@pytest.mark.parametrize("kind", ["Certificate", "PrometheusRule", "ScaledObject", "ServiceMonitor"])
def test_the_typed_models_reproduce_every_custom_resource(models: Mapping[str, Any], kind: str) -> None:
    [resource] = of_kind(kind, all_resources())
    assert reproduced(models, resource) == resource
    resource["spec"]["unknown"] = 1
    assert reproduced(models, resource) != resource


@pytest.mark.skipif(not which("npm"), reason="no npm, which brings the types of Gateway API")
def test_the_types_of_gateway_api_accept_the_routes(tmp_path: Path) -> None:
    """Compile them as typed literals, in which an unknown field is an error."""
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(tmp_path)]
    subprocess.run([*install, GATEWAY_TYPES, TYPESCRIPT], check=True, capture_output=True)

    def complaints(*routes: Json) -> str:
        kinds = {route["kind"] for route in routes}
        folder = "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1"
        lines = [f'import type {{ I{kind} }} from "{folder}/{kind}";' for kind in kinds]
        lines += [
            f"export const r{i}: I{route['kind']} = {json.dumps(route)};" for i, route in enumerate(routes)
        ]
        source = tmp_path / "routes.mts"
        source.write_text("\n".join(lines))
        flags = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022"]
        compiler = [str(tmp_path / "node_modules/.bin/tsc"), *flags, str(source)]
        return subprocess.run(compiler, cwd=tmp_path, capture_output=True, text=True, check=False).stdout

    routes = [route for kind in ("HTTPRoute", "GRPCRoute") for [route] in [of_kind(kind, all_resources())]]
    assert complaints(*routes) == ""
    for route in routes:
        [rule] = route["spec"]["rules"]
        rule["backends"] = rule.pop("backendRefs")
        assert "backends" in complaints(route)
