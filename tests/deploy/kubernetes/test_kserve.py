"""KServe's resources are consistent, and the service runs as their container does.

`kserve`, the package with their models, needs other versions than this project, so their own fields are listed here.
"""

from pathlib import Path

import httpx
import kubernetes_validate

from serving.config import ServiceSettings
from tests.support.kubernetes import Json, needs_kubectl, of_kind, render_kserve, serving
from tests.support.service import running_service

pytestmark = needs_kubectl

RUNTIME_FIELDS = {"annotations", "containers", "protocolVersions", "supportedModelFormats", "volumes"}
PREDICTOR_FIELDS = {"minReplicas", "maxReplicas", "model"}
MODEL_FIELDS = {"runtime", "modelFormat", "protocolVersion", "storageUri"}


def runtime() -> Json:
    [found] = of_kind("ClusterServingRuntime", render_kserve("stable"))
    assert found["apiVersion"] == "serving.kserve.io/v1alpha1"
    spec: Json = found["spec"]
    return spec


def predictor(name: str = "stable") -> Json:
    [found] = of_kind("InferenceService", render_kserve(name))
    assert found["apiVersion"] == "serving.kserve.io/v1beta1"
    spec: Json = found["spec"]["predictor"]
    return spec


def test_the_runtime_is_a_valid_pod() -> None:
    spec = runtime()
    assert spec.keys() == RUNTIME_FIELDS
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "runtime"}}
    containers = {"containers": spec["containers"], "volumes": spec["volumes"]}
    kubernetes_validate.validate(pod | {"spec": containers}, "1.37", strict=True)


def test_the_container_is_what_kserve_expects() -> None:
    [container] = runtime()["containers"]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert container["name"] == "kserve-container"
    assert variables["DISTILLERY_PORT"] == runtime()["annotations"]["prometheus.kserve.io/port"] == "8080"
    assert variables["DISTILLERY_GRPC_PORT"] == "9000"
    assert variables["DISTILLERY_MODELS_DIR"] == "/mnt/models"
    assert {
        name.removeprefix("DISTILLERY_").lower() for name in variables
    } <= ServiceSettings.model_fields.keys()
    assert "ports" not in container  # Knative permits one, and that of gRPC would be a second


def test_the_container_is_as_restricted_as_that_of_the_base() -> None:
    [container] = runtime()["containers"]
    base = serving("production")
    assert base["securityContext"].items() <= container["securityContext"].items()
    assert container["resources"] == base["resources"]


def test_the_inference_service_uses_the_runtime() -> None:
    model = predictor()["model"]
    [form] = runtime()["supportedModelFormats"]
    assert (predictor().keys(), model.keys()) == (PREDICTOR_FIELDS, MODEL_FIELDS)
    assert model["runtime"] == "distillery"
    assert model["modelFormat"].items() <= form.items()
    assert model["protocolVersion"] in runtime()["protocolVersions"]


def test_the_canary_gets_a_share_of_the_requests_and_other_models() -> None:
    stable, canary = predictor(), predictor("canary")
    assert 0 < canary.pop("canaryTrafficPercent") <= 50
    different = {field for field in MODEL_FIELDS if stable["model"][field] != canary["model"][field]}
    assert different == {"storageUri"}


def test_the_service_runs_with_the_variables_of_the_container(one_model: Path, tmp_path: Path) -> None:
    """The repository is a symbolic link, as KServe makes it for a model in an image."""
    models = tmp_path / "mnt-models"
    models.symlink_to(one_model, target_is_directory=True)
    [container] = runtime()["containers"]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    replaced = {
        "DISTILLERY_PORT": "0",
        "DISTILLERY_GRPC_PORT": "0",
        "DISTILLERY_MODELS_DIR": str(models),
        "DISTILLERY_SHUTDOWN_DELAY": "0",
    }
    assert variables.keys() == replaced.keys()
    with running_service(None, "--api-servers", "1", port=None, environment=replaced) as service:
        assert service.grpc
        assert (
            httpx.get(f"{service.url}{runtime()['annotations']['prometheus.kserve.io/path']}").status_code
            == 200
        )
        assert httpx.get(f"{service.url}/v2/models/student/ready").status_code == 200
