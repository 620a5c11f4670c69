"""Settings of the applications for Ray."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from serving.ray.settings import NodeSettings, ReplicaSettings


def test_arguments_of_serve_run_are_strings() -> None:
    settings = ReplicaSettings.model_validate(
        {"models_dir": "/models", "replicas": "3", "open_routes": "health,docs"}
    )
    assert (settings.models_dir, settings.replicas, settings.open_routes) == (
        Path("/models"),
        3,
        ["health", "docs"],
    )


def test_replicas_reject_grpc() -> None:
    with pytest.raises(ValidationError, match="found grpc_port, but replicas of Ray Serve have no gRPC"):
        ReplicaSettings.model_validate({"grpc_port": 9000})


@pytest.mark.parametrize("settings", [NodeSettings, ReplicaSettings])
def test_an_unknown_setting_is_named(settings: type[NodeSettings]) -> None:
    with pytest.raises(ValidationError, match="max_batches"):
        settings.model_validate({"max_batches": 3})
