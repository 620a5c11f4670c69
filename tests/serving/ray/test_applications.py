"""The applications as `serve run` reads them; no cluster is needed."""

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from benchmarks.cluster.balancers import DEPLOY
from serving.model.repository import RepositoryError
from serving.ray import nodes, replicas
from serving.ray.settings import NodeSettings, ReplicaSettings


@pytest.mark.parametrize("name", ["nodes", "replicas"])
def test_the_configuration_of_deploy_is_valid(name: str) -> None:
    configuration = yaml.safe_load((DEPLOY / "ray" / f"{name}.yaml").read_text())
    [application] = ServeDeploySchema.model_validate(configuration).applications
    module, _, function = application.import_path.partition(":")
    [parameter] = inspect.signature(getattr(import_module(module), function)).parameters.values()
    settings = parameter.annotation.model_validate(application.args)
    assert settings.models_dir == Path("/models")


def test_a_replica_takes_as_many_requests_as_the_service_and_is_one_process() -> None:
    application: Any = replicas.app(ReplicaSettings(replicas=3, max_in_flight=300))
    deployment = application._bound_deployment
    assert (deployment.num_replicas, deployment.max_ongoing_requests) == (3, 300)
    assert deployment.init_args[0].api_servers == 1


def test_a_node_has_one_service_and_time_to_drain() -> None:
    application: Any = nodes.app(NodeSettings(shutdown_delay=20, request_timeout=10))
    [_, service] = application._bound_deployment.init_args
    deployment = service._bound_deployment
    assert deployment._deployment_config.graceful_shutdown_timeout_s > 30
    assert deployment._replica_config.max_replicas_per_node == 1


def test_a_replica_names_a_missing_model_repository(tmp_path: Path) -> None:
    replica = replicas.Replica(ReplicaSettings(models_dir=tmp_path / "missing"))
    with pytest.raises(RepositoryError, match="there is no model repository at"):
        replica.__serve_build_asgi_app__()
