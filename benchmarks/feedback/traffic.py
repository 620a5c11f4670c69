"""Requests of one image to a running service, and feedback on some of them, until they are stopped."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

import httpx
import numpy as np
from numpy.typing import NDArray

from serving.model.tensors import Images

CLIENTS = 4
PATIENCE_S = 20
FAILED = 0
"""In place of a status: no response."""


class Traffic:
    """Threads that send `images`, uint8 `[N, 28, 28]`, one after the other to the default model.

    A share `feedback` of the requests is followed by its label. `counts` are the responses by route and status.
    """

    def __init__(
        self,
        url: str,
        images: Images,
        labels: NDArray[np.int64],
        *,
        key: str,
        feedback: float,
        prefix: str,
        repeat: bool = False,
        interval: float = 0,
        seed: int = 0,
    ) -> None:
        """`repeat`: begin again after the last image, until `stop`; `interval`: seconds between a client's requests."""
        self.counts: Counter[tuple[str, int]] = Counter()
        self._url, self._images, self._labels = url, images, labels
        self._access = {"X-API-Key": key}
        self._labelled = np.random.default_rng(seed).random(len(images)) < feedback
        self._prefix, self._repeat, self._interval = prefix, repeat, interval
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"traffic-{number}")
            for number in range(CLIENTS)
        ]

    @property
    def sent(self) -> int:
        """Predictions that were asked for."""
        return sum(count for (route, _), count in self.counts.items() if route == "predict")

    @property
    def failed(self) -> int:
        """Requests of any kind without status 200."""
        return sum(count for (_, status), count in self.counts.items() if status != 200)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self, on_progress: Callable[[int], object] = lambda _: None) -> None:
        """Wait until all images are sent."""
        for thread in self._threads:
            while thread.is_alive():
                thread.join(0.2)
                on_progress(self.sent)

    def stop(self) -> None:
        """Send no more, and wait for the last responses."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, first: int) -> None:
        number = first
        with httpx.Client(base_url=self._url, headers=self._access, timeout=PATIENCE_S) as client:
            while not self._stop.is_set() and (self._repeat or number < len(self._images)):
                self._send(client, number)
                number += CLIENTS
                if self._interval:
                    time.sleep(self._interval)

    def _send(self, client: httpx.Client, number: int) -> None:
        place, request_id = number % len(self._images), f"{self._prefix}-{number}"
        body = {"image": self._images[place].tolist()}
        if self._post(client, "predict", body, {"X-Request-ID": request_id}) == 200 and self._labelled[place]:
            self._post(client, "feedback", {"id": request_id, "digit": int(self._labels[place])})

    def _post(
        self, client: httpx.Client, route: str, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> int:
        try:
            status = client.post(f"/{route}", json=body, headers=headers).status_code
        except httpx.HTTPError:
            status = FAILED
        self.counts[route, status] += 1
        return status
