"""The internals of LitServe that serving/processes/litserve.py relies on; a failure means it must be reviewed."""

import inspect
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from litserve import LitAPI, LitServer
from litserve.loops import LitLoop, loops

from serving.codecs.base import BodyLimits
from serving.engine.lit_api import DigitAPI, ModelSettings
from serving.engine.metrics.series import Metrics, metrics_table
from serving.model.repository import load_repository
from serving.processes.litserve import DigitServer


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_version_of_litserve_is_the_one_reviewed() -> None:
    assert version("litserve") == "0.2.19"


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (LitAPI.setup, ["self", "device"]),
        (LitAPI.batch, ["self", "inputs"]),
        (LitAPI.predict, ["self", "x", "kwargs"]),
        (LitAPI.unbatch, ["self", "output"]),
        (LitAPI.encode_response, ["self", "output", "kwargs"]),
        (LitServer.register_endpoints, ["self"]),
        (LitServer.launch_single_inference_worker, ["self", "lit_api", "worker_id"]),
        (LitServer.lifespan, ["self", "app"]),
        (
            LitLoop.run,
            [
                *("self", "lit_api", "device", "worker_id", "request_queue", "transport"),
                *("workers_setup_status", "callback_runner"),
            ],
        ),
    ],
)  # fmt: skip
def test_functions_called_or_overridden_have_the_expected_parameters(
    function: Any, expected: list[str]
) -> None:
    assert parameters(function) == expected


def test_a_worker_is_launched_with_the_api_and_its_loop() -> None:
    launch = inspect.getsource(LitServer.launch_single_inference_worker)
    for part in (
        'mp.get_context("spawn")',
        "target=inference_worker",
        "self._get_request_queue(lit_api.api_path)",
        "self._transport",
        "self.workers_setup_status[",
        "return process\n",
    ):
        assert part in launch
    assert "self.litapi_request_queues[api_path]" in inspect.getsource(LitServer._get_request_queue)
    worker = inspect.getsource(loops.inference_worker)
    assert worker.index("lit_api.setup(device)") < worker.index("loop(\n")
    assert "loop: LitLoop = lit_api.loop" in worker
    assert "while True:\n                self.run(" in inspect.getsource(LitLoop.__call__)


def test_the_server_has_none_of_litserves_routes(model_repository: Path) -> None:
    apis = [
        DigitAPI(entry, ModelSettings(BodyLimits())) for entry in load_repository(model_repository).values()
    ]
    metrics = Metrics(metrics_table(len(apis), ["rest"], ["/predict"], 1), 1)
    server = DigitServer(apis, metrics, workers_per_model=0, timeout=1)
    paths = {route.path for route in server.app.routes}
    assert paths == {"/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"}  # FastAPI's
    assert [api.request_timeout for api in apis] == [1] * len(apis)
    assert server.devices == ["cpu"]
