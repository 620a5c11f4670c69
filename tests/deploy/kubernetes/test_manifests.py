"""The manifests are valid by the schemas of three Kubernetes versions, unprivileged, pinned and consistent."""

import json
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from shutil import which
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import utils as schemas

from serving.config import ServiceSettings
from tests.support.kubernetes import (
    KUBERNETES,
    RENDERED,
    Json,
    all_resources,
    containers,
    deployment,
    each_rendering,
    needs_kubectl,
    of_kind,
    pod,
    render,
    serving,
)
from tests.support.service import ROOT

pytestmark = needs_kubectl

VERSIONS = ("1.35", "1.36", "1.37")
"""The supported ones."""
CUSTOM = {"Certificate", "GRPCRoute", "HTTPRoute", "PrometheusRule", "ScaledObject", "ServiceMonitor"}
"""Kinds that are not Kubernetes's own: test_custom_resources.py."""
DOCKERFILE = ROOT / "docker/serving.Dockerfile"
DOCKER_DEFAULTS = tomllib.loads((ROOT / "docker/defaults.toml").read_text())
LABELS = {"app.kubernetes.io/name": "distillery"}
HANG_REPLACED_S = 10
"""The time within which the service replaces a process that hangs: docs/operations.md."""
SHUTDOWN_S = 2
"""What a shutdown takes besides the delay and the last requests: docs/operations.md."""


@pytest.fixture(autouse=True, scope="module")
def schemas_read_once() -> Any:
    """kubernetes_validate reads all definitions again for each resource."""
    original = schemas.schema_contents
    schemas.schema_contents = cache(original)
    yield
    schemas.schema_contents = original


def built_in() -> list[Json]:
    return [r for r in all_resources() if r["kind"] not in CUSTOM]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_strict_schemas_of_kubernetes_accept_every_resource(version: str) -> None:
    for resource in built_in():
        assert kubernetes_validate.validate(resource, version, strict=True) == version


def test_no_api_of_kubernetes_is_one_that_may_be_removed() -> None:
    """Beta and alpha versions are."""
    versions = {resource["apiVersion"].rpartition("/")[2] for resource in built_in()}
    assert versions <= {"v1", "v2"}


def test_the_schemas_reject_a_field_that_does_not_exist() -> None:
    broken = json.loads(json.dumps(deployment("production")))
    broken["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["httpGet"]["ports"] = 8000
    with pytest.raises(kubernetes_validate.ValidationError, match="ports"):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_every_component_is_rendered() -> None:
    """In a combination, by an overlay, or by another component."""
    components = {path.parent.name for path in KUBERNETES.glob("components/*/kustomization.yaml")}
    used = {component for combination in RENDERED.values() for component in combination}
    for path in KUBERNETES.glob("*/*/kustomization.yaml"):
        used |= {Path(place).name for place in yaml.safe_load(path.read_text()).get("components", ())}
    assert components <= used


def test_every_file_belongs_to_a_kustomization() -> None:
    for path in KUBERNETES.rglob("kustomization.yaml"):
        text = path.read_text()
        others = {file.name for file in path.parent.glob("*.yaml")} - {path.name}
        assert all(name in text for name in others), path


@each_rendering
def test_no_resource_is_defined_twice(name: str) -> None:
    names = [(resource["kind"], resource["metadata"]["name"]) for resource in render(name)]
    assert len(names) == len(set(names))


@each_rendering
def test_every_selector_selects_the_pods(name: str) -> None:
    pods = deployment(name)["spec"]["template"]["metadata"]["labels"]
    selectors = [deployment(name)["spec"]["selector"]["matchLabels"]]
    selectors += [
        constraint["labelSelector"]["matchLabels"] for constraint in pod(name)["topologySpreadConstraints"]
    ]
    resources = render(name)
    selectors += [service["spec"]["selector"] for service in of_kind("Service", resources)]
    selectors += [
        budget["spec"]["selector"]["matchLabels"] for budget in of_kind("PodDisruptionBudget", resources)
    ]
    selectors += [
        policy["spec"]["podSelector"]["matchLabels"] for policy in of_kind("NetworkPolicy", resources)
    ]
    assert len(selectors) >= 6
    assert all(selector == LABELS and selector.items() <= pods.items() for selector in selectors)
    for monitor in of_kind("ServiceMonitor", resources):
        [service] = of_kind("Service", resources)
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()


@each_rendering
def test_every_port_that_is_referred_to_exists(name: str) -> None:
    resources = render(name)
    of_pod = {port["name"]: port["containerPort"] for port in serving(name)["ports"]}
    [service] = of_kind("Service", resources)
    of_service = {port["name"]: port["port"] for port in service["spec"]["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == of_pod.keys()
    probes = ("startupProbe", "readinessProbe", "livenessProbe")
    assert {serving(name)[probe]["httpGet"]["port"] for probe in probes} == {"http"}
    allowed = {
        port["port"]
        for policy in of_kind("NetworkPolicy", resources)
        for rule in policy["spec"]["ingress"]
        for port in rule["ports"]
    }
    assert allowed == of_pod.keys()
    for monitor in of_kind("ServiceMonitor", resources):
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} == {"http"}
    for ingress in of_kind("Ingress", resources):
        [rule] = ingress["spec"]["rules"]
        backends = [path["backend"]["service"] for path in rule["http"]["paths"]]
        assert backends == [{"name": service["metadata"]["name"], "port": {"name": "http"}}]
    for kind, port in (("HTTPRoute", "http"), ("GRPCRoute", "grpc")):
        for route in of_kind(kind, resources):
            [rule] = route["spec"]["rules"]
            assert rule["backendRefs"] == [{"name": service["metadata"]["name"], "port": of_service[port]}]


@each_rendering
def test_the_ports_are_those_that_the_service_listens_on(name: str) -> None:
    ports = {port["name"]: port["containerPort"] for port in serving(name)["ports"]}
    settings = {variable["name"]: variable["value"] for variable in serving(name)["env"]}
    assert ports.pop("http") == DOCKER_DEFAULTS["port"]
    assert {str(port) for port in ports.values()} == {
        settings[k] for k in settings if k == "DISTILLERY_GRPC_PORT"
    }


def test_the_routes_of_gateway_api_have_host_names_of_their_own() -> None:
    """HTTPRoute and GRPCRoute must not share one on a listener."""
    [http] = of_kind("HTTPRoute", render("operators"))
    [grpc] = of_kind("GRPCRoute", render("operators"))
    assert not set(http["spec"]["hostnames"]) & set(grpc["spec"]["hostnames"])
    assert {http["apiVersion"], grpc["apiVersion"]} == {"gateway.networking.k8s.io/v1"}
    assert http["spec"]["parentRefs"] == grpc["spec"]["parentRefs"]


def test_the_certificate_is_that_of_the_ingress() -> None:
    [ingress] = of_kind("Ingress", render("image volume"))
    [certificate] = of_kind("Certificate", render("image volume"))
    [tls] = ingress["spec"]["tls"]
    assert (
        tls["hosts"] == [rule["host"] for rule in ingress["spec"]["rules"]] == certificate["spec"]["dnsNames"]
    )
    assert tls["secretName"] == certificate["spec"]["secretName"]


@each_rendering
def test_the_pods_have_no_privileges(name: str) -> None:
    """Pod Security Standard `restricted`, a root file system that is read-only, and no token."""
    spec = pod(name)
    user = re.search(r"^USER (\d+):(\d+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert user
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": int(user[1]),
        "runAsGroup": int(user[2]),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for container in containers(name):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert spec["automountServiceAccountToken"] is False
    [account] = of_kind("ServiceAccount", render(name))
    assert account["automountServiceAccountToken"] is False
    assert spec["serviceAccountName"] == account["metadata"]["name"]
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert all("hostPath" not in volume for volume in spec["volumes"])
    assert spec["enableServiceLinks"] is False


@each_rendering
def test_the_pods_accept_only_connections_that_a_policy_names(name: str) -> None:
    policies = of_kind("NetworkPolicy", render(name))
    assert any(set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"} for policy in policies)
    for policy in policies:
        assert all(rule["from"] and rule["ports"] for rule in policy["spec"]["ingress"])
        assert all(rule["to"] and rule["ports"] for rule in policy["spec"].get("egress", ()))


@each_rendering
def test_requests_are_not_above_limits(name: str) -> None:
    for container in containers(name):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert requests.keys() == limits.keys() == {"cpu", "memory"}
        assert all(0 < quantity(requests[key]) <= quantity(limits[key]) for key in limits)


def quantity(text: str) -> float:
    """Return CPUs or bytes."""
    found = re.fullmatch(r"(\d+)(m|Mi|Gi|)", text)
    assert found, text
    return int(found[1]) * {"m": 1e-3, "": 1, "Mi": 2**20, "Gi": 2**30}[found[2]]


@each_rendering
def test_a_pod_is_given_the_time_that_a_shutdown_takes(name: str) -> None:
    pause = serving(name)["lifecycle"]["preStop"]["sleep"]["seconds"]
    settings = {variable["name"]: variable["value"] for variable in serving(name)["env"]}
    delay = float(settings["DISTILLERY_SHUTDOWN_DELAY"])
    last_requests = float(
        settings.get("DISTILLERY_REQUEST_TIMEOUT", ServiceSettings.model_fields["request_timeout"].default)
    )
    assert pause >= 5  # docs/operations.md: 5 to 10 s for Kubernetes
    readiness = serving(name)["readinessProbe"]
    assert delay >= readiness["periodSeconds"]  # at least one poll of the same interval notices it
    assert pod(name)["terminationGracePeriodSeconds"] >= 1.5 * (pause + delay + last_requests + SHUTDOWN_S)


@each_rendering
def test_a_pod_is_killed_only_after_the_service_had_the_time_to_replace_its_processes(name: str) -> None:
    liveness = serving(name)["livenessProbe"]
    assert (liveness["failureThreshold"] - 1) * liveness["periodSeconds"] > HANG_REPLACED_S


@each_rendering
def test_the_models_are_mounted_read_only_where_the_image_expects_them(name: str) -> None:
    mounts = {mount["mountPath"]: mount for mount in serving(name)["volumeMounts"]}
    assert mounts.keys() == {DOCKER_DEFAULTS["models_dir"], "/tmp"}
    assert mounts[DOCKER_DEFAULTS["models_dir"]]["readOnly"] is True
    volumes = {volume["name"] for volume in pod(name)["volumes"]}
    assert {mount["name"] for container in containers(name) for mount in container["volumeMounts"]} == volumes


@each_rendering
def test_every_variable_is_a_setting_of_the_service(name: str) -> None:
    for variable in serving(name)["env"]:
        assert variable["name"].removeprefix("DISTILLERY_").lower() in ServiceSettings.model_fields


def test_images_in_production_have_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = [container["image"] for container in containers("production")]
    assert len(images) == 2
    assert all(re.fullmatch(rf".+/distillery-[a-z]+:{re.escape(version)}", image) for image in images)


@each_rendering
def test_one_autoscaler_at_most_sets_the_replicas(name: str) -> None:
    scalers = [r for r in render(name) if r["kind"] in {"HorizontalPodAutoscaler", "ScaledObject"}]
    assert len(scalers) == (name != "development")
    assert "replicas" not in deployment(name)["spec"]  # an apply would set them back
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment(name)["metadata"]["name"]}
    for scaler in scalers:
        assert scaler["spec"]["scaleTargetRef"] == target


def test_both_autoscalers_grow_fast_and_shrink_slowly() -> None:
    [hpa] = of_kind("HorizontalPodAutoscaler", render("production"))
    [scaled] = of_kind("ScaledObject", render("operators"))
    behavior = hpa["spec"]["behavior"]
    assert scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == behavior
    assert (
        behavior["scaleUp"]["stabilizationWindowSeconds"]
        < behavior["scaleDown"]["stabilizationWindowSeconds"]
    )
    assert [policy["type"] for policy in behavior["scaleDown"]["policies"]] == ["Pods"]
    limits = hpa["spec"]["minReplicas"], hpa["spec"]["maxReplicas"]
    assert (scaled["spec"]["minReplicaCount"], scaled["spec"]["maxReplicaCount"]) == limits
    assert limits[0] < scaled["spec"]["fallback"]["replicas"] <= limits[1]
    for trigger in scaled["spec"]["triggers"]:
        assert trigger["metricType"] == "AverageValue"
        assert float(trigger["metadata"]["activationThreshold"]) < float(trigger["metadata"]["threshold"])


def test_the_namespace_of_production_enforces_restricted_pods() -> None:
    [namespace] = of_kind("Namespace", render("production"))
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {r["metadata"]["namespace"] for r in render("production") if r is not namespace} == {
        namespace["metadata"]["name"]
    }


def test_the_rules_are_those_of_docker() -> None:
    [rule] = of_kind("PrometheusRule", render("operators"))
    assert rule["spec"] == yaml.safe_load((ROOT / "docker/prometheus/rules.yml").read_text())


def test_the_dashboards_are_those_of_docker() -> None:
    maps = of_kind("ConfigMap", render("operators"))
    found = {name: text for one in maps for name, text in one["data"].items()}
    assert found == {
        path.name: path.read_text() for path in (ROOT / "docker/grafana/dashboards").glob("*.json")
    }
    assert all(one["metadata"]["labels"] == LABELS | {"grafana_dashboard": "1"} for one in maps)


def test_the_job_of_the_service_monitor_is_that_of_the_rules() -> None:
    """The value of `jobLabel` on the Service."""
    [monitor] = of_kind("ServiceMonitor", render("operators"))
    [service] = of_kind("Service", render("operators"))
    job = service["metadata"]["labels"][monitor["spec"]["jobLabel"]]
    assert f'up{{job="{job}"}}' in (ROOT / "docker/prometheus/rules.yml").read_text()
    [scaled] = of_kind("ScaledObject", render("operators"))
    for trigger in scaled["spec"]["triggers"]:
        assert set(re.findall(r"\{(.*?)\}", trigger["metadata"]["query"])) == {f'job="{job}"'}


@pytest.mark.prometheus
@pytest.mark.skipif(not which("promtool"), reason="no promtool: make system installs it")
def test_promtool_accepts_the_queries_of_the_triggers(tmp_path: Path) -> None:
    [scaled] = of_kind("ScaledObject", render("operators"))
    queries = [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]
    rules = [{"record": f"query_{index}", "expr": query} for index, query in enumerate(queries)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    check = ["promtool", "check", "rules", "--lint-fatal", "rules.yml"]
    run = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
