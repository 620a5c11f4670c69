"""What the manifests expect of the service is what the service does."""

import re
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.kubernetes import (
    Json,
    all_resources,
    each_rendering,
    needs_kubectl,
    of_kind,
    render,
    serving,
)
from tests.support.service import Service, running_service

pytestmark = needs_kubectl

METRIC = re.compile(r"(?<![:\w])distillery_\w+")
"""In PromQL; recorded series have a prefix and a colon."""


@each_rendering
def test_the_service_responds_to_every_probe(service: Service, name: str) -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        path = serving(name)[probe]["httpGet"]["path"]
        assert httpx.get(service.url + path).status_code == 200, path


def queries(resource: Json) -> list[str]:
    """Return the PromQL of a resource."""
    if resource["kind"] == "PrometheusRule":
        return [rule["expr"] for group in resource["spec"]["groups"] for rule in group["rules"]]
    return [trigger["metadata"]["query"] for trigger in resource["spec"]["triggers"]]


def test_the_service_exposes_every_metric_of_rules_and_triggers(service: Service) -> None:
    [monitor] = of_kind("ServiceMonitor", all_resources())
    [endpoint] = monitor["spec"]["endpoints"]
    text = httpx.get(service.url + endpoint["path"]).raise_for_status().text
    exposed = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    for kind, at_least in (("PrometheusRule", 15), ("ScaledObject", 4)):
        [resource] = of_kind(kind, all_resources())
        used = {metric for query in queries(resource) for metric in METRIC.findall(query)}
        assert len(used) >= at_least
        assert used <= exposed


def test_the_service_starts_with_the_variables_of_the_pod(one_model: Path) -> None:
    """Except that its ports are free ones, and that it ends at once."""
    variables = {v["name"]: v["value"] for v in serving("operators")["env"]}
    variables["DISTILLERY_GRPC_PORT"] = "0"
    with running_service(
        one_model, "--shutdown-delay", "0", "--api-servers", "1", environment=variables
    ) as service:
        assert service.grpc
        assert httpx.get(f"{service.url}/health/ready").status_code == 200


def test_the_methods_of_the_grpc_route_are_services_of_the_server(service: Service) -> None:
    import grpc  # noqa: PLC0415
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (  # noqa: PLC0415
        ProtoReflectionDescriptorDatabase,
    )

    [route] = of_kind("GRPCRoute", render("operators"))
    wanted = {match["method"]["service"] for rule in route["spec"]["rules"] for match in rule["matches"]}
    with grpc.insecure_channel(service.grpc) as channel:
        offered = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert wanted <= offered
