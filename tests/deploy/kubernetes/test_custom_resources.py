"""Typed models of the custom resources reproduce them: a field with another name or type would be lost or rejected.

The models accept unknown fields and drop them, so what matters is the round trip. There are none for Gateway API.
"""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.kubernetes import Json, all_resources, needs_kubectl, of_kind

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
