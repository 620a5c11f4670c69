"""Concurrent requests get their own predictions: thousands of distinct digits, with invalid requests among them."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.model.repository import load_repository
from serving.model.session import Session
from tests.support.requests.connections import Connection, post
from tests.support.requests.tensors import binary
from tests.support.service import Service
from tests.support.training.samples import sample_test

MODELS = ("teacher", "student")
CLIENTS, REQUESTS = 16, 60
BAD = '{"image": [[256]]}'


def distinct_digits(count: int) -> NDArray[np.uint8]:
    """Return sample digits with individual noise, no two alike."""
    digits = np.resize(sample_test().images.numpy(), (count, 28, 28)).copy()
    noise = np.random.default_rng(0).integers(0, 64, digits.shape, np.uint8)
    return np.maximum(digits, noise)


def as_predict(model: str, images: NDArray[np.uint8]) -> bytes:
    return post(f"/predict/{model}", json.dumps({"images": images.tolist()}).encode())


def as_tensor(model: str, images: NDArray[np.uint8]) -> bytes:
    headers, body = binary(images)
    return post(f"/v2/models/{model}/infer", body, *(f"{name}: {value}" for name, value in headers.items()))


def probabilities(answer: dict[str, Any]) -> Any:
    if "predictions" in answer:
        return [one["probabilities"] for one in answer["predictions"]]
    output = next(output for output in answer["outputs"] if output["name"] == "probabilities")
    return np.reshape(output["data"], output["shape"])


@pytest.mark.parametrize("executor", ["service", pytest.param("workers_service", marks=pytest.mark.slow)])
def test_concurrent_requests_get_their_own_predictions(
    model_repository: Path, request: pytest.FixtureRequest, executor: str
) -> None:
    service: Service = request.getfixturevalue(executor)
    entries = load_repository(model_repository)
    sessions = {name: Session(entries[name].path) for name in MODELS}
    images = distinct_digits(CLIENTS * REQUESTS * 4)
    expected = {name: session.run(images).probabilities for name, session in sessions.items()}

    async def client(url: str, number: int) -> int:
        choice = random.Random(number)  # noqa: S311 - reproducible
        connection = await Connection.to(str(urlsplit(url).hostname), urlsplit(url).port or 0)
        answered = 0
        for index in range(REQUESTS):
            model, form = choice.choice(MODELS), choice.choice((as_predict, as_tensor))
            start = (number * REQUESTS + index) * 4
            part = slice(start, start + choice.choice((1, 1, 2, 4)))
            if choice.random() < 0.1:
                assert (await connection.ask(post(f"/predict/{model}", BAD.encode())))[0] == 422
            status, answer = await connection.ask(form(model, images[part]))
            assert status == 200, answer
            assert np.allclose(probabilities(answer), expected[model][part], atol=1e-4)
            answered += part.stop - part.start
        connection.writer.close()
        return answered

    async def clients(url: str) -> int:
        return sum(await asyncio.gather(*(client(url, number) for number in range(CLIENTS))))

    assert asyncio.run(clients(service.url)) > CLIENTS * REQUESTS
