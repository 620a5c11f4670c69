"""True digits sent by the clients."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest

from serving.client import AsyncClient, Client, Feedback, Predictions
from serving.client.errors import InvalidLabelsError, RefusedError
from serving.client.messages import Timing
from tests.support.requests.clients import BOTH, Kind, png
from tests.support.service import running_service
from tests.support.training.samples import sample_test

DIGITS = sample_test()
IMAGES = DIGITS.images.numpy()
LABELS: list[int] = DIGITS.labels.tolist()


def label(kind: Kind, url: str, digits: Sequence[int | None], *, pictures: bool = False) -> list[Feedback]:
    """Classify the first images in requests of 30, and send their true digits twice."""
    count = len(digits)
    files = [png(image) for image in IMAGES[:count].reshape(-1, 28, 28)]
    if kind is Client:
        with Client(url, max_images=30) as client:
            found = client.predict_pictures(files) if pictures else client.predict(IMAGES[:count])
            return [client.feedback(found, digits) for _ in range(2)]

    async def label_all() -> list[Feedback]:
        async with AsyncClient(url, max_images=30) as client:
            found = await (client.predict_pictures(files) if pictures else client.predict(IMAGES[:count]))
            return [await client.feedback(found, digits) for _ in range(2)]

    return asyncio.run(label_all())


@BOTH
def test_true_digits_are_counted_once_for_the_images_that_have_one(kind: Kind, one_model: Path) -> None:
    with running_service(one_model, "--api-servers", "2") as service:
        digits = [None if number % 4 == 3 else LABELS[number] for number in range(80)]
        assert label(kind, service.url, digits) == [Feedback(60, 0, []), Feedback(0, 60, [])]
        assert label(kind, service.url, LABELS[:3], pictures=True)[0] == Feedback(3, 0, [])
        [model] = httpx.get(f"{service.url}/feedback").json()["models"]
        assert model["labels"] == 63


def predictions(count: int) -> Predictions:
    ids = [("never sent", number) for number in range(count)]
    return Predictions(
        np.zeros(count, np.int64),
        np.zeros((count, 10), np.float32),
        "student",
        "1",
        Timing(0, 0, 0, 0),
        ids=ids,
    )


def test_labels_that_are_rejected_have_a_reason(one_model: Path) -> None:
    with running_service(one_model, "--api-servers", "1") as service, Client(service.url) as client:
        found = client.feedback(predictions(300), [1] * 300)
        assert (found.counted, len(found.rejected)) == (0, 300)
        assert "there is no request 'never sent' of this client" in found.rejected[0]
    with (
        running_service(one_model, "--api-servers", "1", "--no-feedback") as service,
        Client(service.url) as client,
        pytest.raises(RefusedError, match="status 404"),
    ):
        client.feedback(predictions(1), [1])


@pytest.mark.parametrize(
    ("digits", "message"),
    [
        ([1], "found 1 digits for 2 images with a request id; expected one each, or None"),
        ([1, 10], "digit 1 is 10; expected an integer from 0 to 9, or None"),
        ([1, "2"], "digit 1 is '2'; expected"),
    ],
)
def test_digits_that_are_none_are_not_sent(digits: list[int], message: str) -> None:
    with Client("http://127.0.0.1:1") as client, pytest.raises(InvalidLabelsError, match=message):
        client.feedback(predictions(2), digits)
