"""`distillery-bench switches`: versions of a model are exchanged, and bad ones rejected, under load."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import httpx
import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt
from rich.progress import track

from benchmarks.commands.bench import Bench
from benchmarks.errors import BenchmarkError
from benchmarks.load.checked import CheckedLoad, checked_load
from benchmarks.load.digits import load_digits
from benchmarks.load.workloads import PROBABILITIES, request
from benchmarks.results.models import model_facts, select_models
from benchmarks.results.ratio import Ratio
from benchmarks.systems.candidates import CRASH, DAMAGES, CrashingTrial, place
from benchmarks.systems.servers import ServerProcess, running_service
from distillery.machine import usable_cores
from serving.client.tensors import pack
from serving.model.repository import ModelEntry
from serving.model.session import Session
from serving.model.tensors import Images, Scores
from serving.model.versions import VersionPolicy

KEY = "benchmark"
NAME = "model"
DIGITS = 32
"""In as many requests of each kind."""
DISTINCT = 1e-3
"""Least difference of a probability by which the versions can be told apart."""


class Window(NamedTuple):
    """A change, and as long a time before it without one; seconds (`time.monotonic`)."""

    start: float
    end: float

    @property
    def before(self) -> tuple[float, float]:
        """A time of the same length that ends a quarter of a second before the change."""
        return 2 * self.start - self.end - 0.25, self.start - 0.25


class Switches(Bench):
    """Exchange two versions of a model, offer bad ones, and check every response.

    Requests arrive at random on keep-alive connections, half of them JSON to /predict, half V2 with binary tensors. A
    response is compared with an onnxruntime session of the version that it names. The latencies during a change are
    compared with those of as long a time before it.
    """

    limitations = (
        "the load generator shares the cores with the service, and with the trial of a new version",
        "a change includes reading the files, the trial, and the preparation in all processes; requests are served "
        "all the time, and the exchange itself is one step of the event loop",
    )
    examples = ("distillery-bench switches --switches 6 --rate 200",)

    models_dir: Path = Field(Path("models"), description="model repository")
    models: list[str] = Field(
        ["student", "fast"], min_length=2, max_length=2, description="two models that become the versions"
    )
    switches: PositiveInt = Field(20, description="changes from one version to the other")
    bad: bool = Field(True, description="then offer a bad version of each kind")
    rate: PositiveFloat = Field(400.0, description="requests per second")
    connections: PositiveInt = Field(8, description="keep-alive connections")
    pause: PositiveFloat = Field(1.5, description="seconds between two changes")
    api_servers: PositiveInt = Field(
        default_factory=lambda: max(2, usable_cores()), description="API processes of the service"
    )

    def measure(self) -> dict[str, Any]:
        entries = select_models(self.models_dir, self.models)
        versions = {str(number): entries[name] for number, name in enumerate(self.models, 1)}
        images, expected = _distinct_digits(versions)
        with tempfile.TemporaryDirectory(prefix="distillery-switches-") as folder:
            root = Path(folder)
            for version, entry in versions.items():
                place(root, NAME, version, entry, images[:10])
            _set_version(root, "1")
            flags = ("--api-servers", str(self.api_servers), "--api-key", KEY)
            with (
                running_service(root, *flags) as server,
                httpx.Client(base_url=server.url, headers={"X-API-Key": KEY}, timeout=180) as client,
            ):
                twice = {version: np.concatenate([one, one]) for version, one in expected.items()}
                requests = _requests(server.url, images)
                with checked_load(server.url, requests, twice, self.rate, self.connections) as load:
                    windows, memory = self._switch(root, server, client)
                    rejected = self._offer_bad(root, server, client, entries[self.models[0]], images)
        return {
            "models": model_facts(entries),
            "versions": self.models,
            "api_servers": self.api_servers,
            "rate": self.rate,
            "connections": self.connections,
            "memory_mib": memory,
            "rows": [_row(load, windows)],
            "rejected": rejected,
        }

    def _switch(
        self, root: Path, server: ServerProcess, client: httpx.Client
    ) -> tuple[list[Window], dict[str, float]]:
        """Make all switches; return when they were, and the memory of all processes at three times."""
        windows: list[Window] = []
        time.sleep(2 * self.pause)  # warm up
        memory = {"before": server.memory_mib()}
        for number in track(range(self.switches), "switches", transient=True):
            _set_version(root, str(2 - number % 2))
            time.sleep(self.pause)
            if number == self.switches // 2:
                memory["half_way"] = server.memory_mib()
            start = time.monotonic()
            answer = client.post(f"/v2/repository/models/{NAME}/load")
            windows.append(Window(start, time.monotonic()))
            if answer.status_code != 200:
                raise BenchmarkError(f"the switch was rejected: {answer.text[:500]}")
        time.sleep(self.pause)
        memory["after"] = server.memory_mib()
        return windows, {when: round(mib, 1) for when, mib in memory.items()}

    def _offer_bad(
        self, root: Path, server: ServerProcess, client: httpx.Client, entry: ModelEntry, images: Images
    ) -> list[dict[str, Any]]:
        """Offer the bad versions; return what became of them."""
        rejected = []
        damages = DAMAGES if self.bad else {}
        for number, (kind, damage) in enumerate(track(damages.items(), "bad versions", transient=True), 3):
            folder = place(root, NAME, str(number), entry, images[:10])
            damage(folder)
            _set_version(root, str(number))
            time.sleep(self.pause)
            rejected.append({"kind": kind} | _offer(server, client, kind))
        time.sleep(self.pause)
        return rejected


def _offer(server: ServerProcess, client: httpx.Client, kind: str) -> dict[str, Any]:
    """Have the service load a bad version; return its answer. Raises `BenchmarkError` if it loads it."""
    start = time.monotonic()
    path = f"/v2/repository/models/{NAME}/load"
    if kind == CRASH:
        with CrashingTrial(server.process.pid) as trial:
            answer = client.post(path)
        if not trial.crashed:
            raise BenchmarkError("the trial had ended before it could be stopped; run the benchmark again")
    else:
        answer = client.post(path)
    if answer.status_code == 200:
        raise BenchmarkError(f"the service has loaded a bad version: {kind}")
    return {
        "status": answer.status_code,
        "reason": str(answer.json().get("error", ""))[:300],
        "seconds": round(time.monotonic() - start, 3),
    }


def _set_version(root: Path, version: str) -> None:
    """Have the policy name one version."""
    path = root / NAME / "config.pbtxt"
    path.write_text(VersionPolicy("specific", versions=(int(version),)).text())


def _distinct_digits(versions: Mapping[str, ModelEntry]) -> tuple[Images, dict[str, Scores]]:
    """Return digits that the versions differ on, and the probabilities of each. Raises `BenchmarkError`."""
    digits = load_digits()
    found = {
        version: np.asarray(Session(entry.content).run(digits).probabilities)
        for version, entry in versions.items()
    }
    first, second = found.values()
    differ = np.abs(first - second).max(axis=1) > DISTINCT
    if differ.sum() < 4:
        raise BenchmarkError(
            "the two models predict nearly the same; name others with --models, such as student,fast"
        )
    chosen = np.flatnonzero(differ)[:DIGITS]
    return digits[chosen], {version: one[chosen] for version, one in found.items()}


def _requests(url: str, images: Images) -> list[bytes]:
    """Return the requests for each image: as JSON, then as binary tensors of V2."""
    key = {"X-API-Key": KEY}
    json = [
        request(
            f"{url}/predict/{NAME}",
            key | {"Content-Type": "application/json"},
            httpx.Request("POST", url, json={"image": image.tolist()}).content,
        )
        for image in images
    ]
    binary = []
    for image in images:
        headers, body = pack(image[None], outputs=[PROBABILITIES])
        binary.append(request(f"{url}/v2/models/{NAME}/infer", key | headers, body))
    return [*json, *binary]


def _row(load: CheckedLoad, windows: list[Window]) -> dict[str, Any]:
    """Return the figures of all changes together, and the rounds that they come from."""
    during = [load.within(*window) for window in windows]
    before = [load.within(*window.before) for window in windows]
    rounds = [
        {
            "during_p99_ms": _quantile(one, 0.99),
            "without_p99_ms": _quantile(other, 0.99),
            "requests": len(one),
        }
        for one, other in zip(during, before, strict=True)
    ]
    ratio = Ratio.within_rounds(
        [one["during_p99_ms"] for one in rounds], [one["without_p99_ms"] for one in rounds]
    )
    together, apart = sum(during, []), sum(before, [])  # noqa: RUF017 - a few thousand
    seconds = [window.end - window.start for window in windows]
    kept = {name: value for name, value in asdict(load).items() if name not in {"due", "latency_ms"}}
    return kept | {
        "switches": len(windows),
        "requests": load.requests,
        "during": len(together),
        "seconds": round(median(seconds), 3),
        "longest_seconds": round(max(seconds), 3),
        "p50_ms": {"during": _quantile(together, 0.5), "without": _quantile(apart, 0.5)},
        "p99_ms": {"during": _quantile(together, 0.99), "without": _quantile(apart, 0.99)},
        "largest_ms": {"during": max(together), "without": max(apart)},
        "p99_ratio": ratio.as_json(),
        "pooled_ratio": _pooled(during, before),
        "rounds": rounds,
    }


def _quantile(values: list[float], fraction: float) -> float:
    return round(float(np.quantile(values, fraction)), 3)


def _pooled(during: list[list[float]], before: list[list[float]]) -> dict[str, float]:
    """Return the ratio of the p99 of all requests, with a 90 % interval by a bootstrap over the changes."""
    random = np.random.default_rng(0)

    def ratio(chosen: Any) -> float:
        ours, theirs = (np.concatenate([part[index] for index in chosen]) for part in (during, before))
        return float(np.quantile(ours, 0.99) / np.quantile(theirs, 0.99))

    resampled = [ratio(random.integers(0, len(during), len(during))) for _ in range(1000)]
    low, high = np.quantile(resampled, [0.05, 0.95])
    return {"ratio": round(ratio(range(len(during))), 3), "low": round(low, 3), "high": round(high, 3)}
