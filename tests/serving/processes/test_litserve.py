"""The internals of LitServe that serving/processes/litserve.py relies on; a failure means it must be reviewed."""

import asyncio
import inspect
import multiprocessing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import litserve
import pytest
from litserve import LitAPI, LitServer
from litserve.loops import LitLoop, loops
from litserve.server import response_queue_to_buffer
from litserve.transport.process_transport import MPQueueTransport
from litserve.utils import LitAPIStatus, LoopResponseType, ResponseBufferItem

from serving.codecs.base import BodyLimits
from serving.engine.lit_api import DigitAPI, ModelSettings
from serving.engine.metrics import Metrics, metrics_table
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
        (LitServer.launch_inference_worker, ["self", "lit_api"]),
        (LitServer.lifespan, ["self", "app"]),
        (MPQueueTransport, ["manager", "queues"]),
        (MPQueueTransport.send, ["self", "item", "consumer_id"]),
        (response_queue_to_buffer, ["transport", "response_buffer", "consumer_id", "litapi_connector"]),
        (
            LitLoop.put_response,
            ["self", "transport", "response_queue_id", "uid", "response_data", "status", "response_type"],
        ),
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


def test_a_worker_is_launched_with_the_queue_transport_and_loop_of_the_server() -> None:
    launch = inspect.getsource(LitServer.launch_inference_worker)
    for part in (
        'mp.get_context("spawn")',
        "target=inference_worker",
        "for worker_id, device in enumerate(inference_workers_config)",  # rows of the metrics
        "self._get_request_queue(lit_api.api_path)",
        "self._transport",
        "self.workers_setup_status[",
        "return process_list",
    ):
        assert part in launch
    assert "self.litapi_request_queues[api_path]" in inspect.getsource(LitServer._get_request_queue)
    worker = inspect.getsource(loops.inference_worker)
    assert worker.index("lit_api.setup(device)") < worker.index("loop(\n")
    assert "loop: LitLoop = lit_api.loop" in worker
    assert "while True:\n                self.run(" in inspect.getsource(LitLoop.__call__)


def test_a_response_sent_by_a_loop_reaches_the_buffer_of_its_api_process() -> None:
    async def test() -> None:
        context = multiprocessing.get_context("spawn")
        queues = [context.Queue() for _ in range(2)]
        transport = MPQueueTransport(None, queues)
        LitLoop().put_response(transport, 1, "uid", ["answer"], LitAPIStatus.OK, LoopResponseType.REGULAR)
        buffer = {"uid": ResponseBufferItem(asyncio.Event())}
        connector = litserve.server._LitAPIConnector([LitAPI()])
        collector = asyncio.create_task(response_queue_to_buffer(transport, buffer, 1, connector))
        await asyncio.wait_for(buffer["uid"].event.wait(), 10)
        assert buffer["uid"].response == [["answer"], LitAPIStatus.OK]
        collector.cancel()
        await asyncio.wait((collector,))
        for queue in queues:
            queue.close()
            queue.join_thread()

    asyncio.run(test())


def test_the_server_has_none_of_litserves_routes(model_repository: Path) -> None:
    apis = [
        DigitAPI(entry, ModelSettings(BodyLimits())) for entry in load_repository(model_repository).values()
    ]
    metrics = Metrics(metrics_table([api.entry.name for api in apis], ["rest"], 1), 1)
    server = DigitServer(apis, metrics, api_servers=1, workers_per_model=0, timeout=1)
    paths = {route.path for route in server.app.routes}
    assert paths == {"/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"}
    assert [api.request_timeout for api in apis] == [1] * len(apis)
    assert server.devices == ["cpu"]
