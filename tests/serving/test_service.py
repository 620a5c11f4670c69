"""The assembled service, mounted without a server."""

import asyncio
from pathlib import Path

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from serving.__main__ import Serve
from serving.http.middleware.route_metrics import ROUTES
from serving.release.first import UnknownDefaultError, choose_default
from serving.service import build
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.tolist()


def test_the_service_can_be_mounted_as_an_asgi_application(one_model: Path) -> None:
    service = build(Serve(models_dir=one_model))
    transport = httpx.ASGITransport(service.app)

    async def use() -> None:
        async with (
            service.lifespan(service.server.app),
            httpx.AsyncClient(transport=transport, base_url="http://service") as client,
        ):
            responses = await asyncio.gather(
                *(client.post("/predict", json={"images": DIGITS[:n]}) for n in range(1, 9))
            )
            assert [len(response.json()["predictions"]) for response in responses] == list(range(1, 9))
            assert (await client.post("/v2/models/student/infer", json={})).status_code == 400
            assert (await client.get("/models")).json()["default"] == "student"
        route = service.routes.find("/predict")
        assert route
        assert route.endpoint.metrics.in_flight == 0

    asyncio.run(use())


def test_every_route_has_its_label_in_the_metrics(one_model: Path) -> None:
    service = build(Serve(models_dir=one_model))
    templates = {route.path for route in iter_route_contexts(service.server.app.routes)}
    labels = {template.replace("/versions/{version}", "") for template in templates if template}
    assert labels == set(ROUTES)
    assert len(labels) == len(ROUTES)


def test_the_default_model_is_the_cheapest_student() -> None:
    assert choose_default(["fast", "fast-int8", "student", "student-int8"], None) == "fast-int8"
    assert choose_default(["student", "student-int8", "teacher"], None) == "student-int8"
    assert choose_default(["other", "student", "teacher"], None) == "student"
    assert choose_default(["other", "teacher"], None) == "other"
    assert choose_default(["other", "teacher"], "teacher") == "teacher"


def test_an_unknown_default_model_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(
        UnknownDefaultError, match="no model 'techer'; known: student, teacher; did you mean teacher"
    ):
        choose_default(["student", "teacher"], "techer")
