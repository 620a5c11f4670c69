"""LoadGen's runs of a session: what is reported, and errors on both sides of its callbacks."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError
from benchmarks.loadgen.run import Scenario, run_loadgen
from benchmarks.loadgen.session import BATCH, SessionSystem
from serving.model.tensors import Images

pytest.importorskip("mlperf_loadgen")

SHORT = {"min_duration_ms": 50, "min_query_count": 20, "server_target_qps": 1000}
SERVER = SHORT | {"min_query_count": 662}


def infer(images: Images) -> NDArray[np.float32]:
    return np.full((len(images), 10), 0.1, dtype=np.float32)


def system(function: Callable[[Images], Any] = infer, threads: int = 2) -> SessionSystem:
    return SessionSystem("student", function, threads=threads)


@pytest.mark.parametrize(("scenario", "samples"), [("SingleStream", 1), ("MultiStream", 8)])
def test_a_stream_infers_the_samples_of_one_query_at_a_time(scenario: Scenario, samples: int) -> None:
    sizes = []

    def counting(images: Images) -> Any:
        sizes.append(len(images))
        return infer(images)

    outcome = run_loadgen(system(counting), scenario, SHORT, seed=0)
    assert set(sizes) == {samples}
    assert len(sizes) == outcome.queries >= 20


def test_offline_samples_are_inferred_in_full_batches() -> None:
    sizes = []

    def counting(images: Images) -> Any:
        sizes.append(len(images))
        return infer(images)

    outcome = run_loadgen(system(counting, threads=1), "Offline", SHORT, seed=0)
    assert max(sizes) <= BATCH
    assert sum(sizes) >= 20
    assert outcome.samples_per_s
    assert outcome.samples_per_s > 0


def test_loadgen_judges_a_server_run_by_the_bound() -> None:
    loose = run_loadgen(system(), "Server", SERVER | {"server_target_latency_ns": 10**10}, seed=0)
    assert loose.valid
    tight = run_loadgen(system(), "Server", SERVER | {"server_target_latency_ns": 1}, seed=0)
    assert not tight.valid


@pytest.mark.parametrize("scenario", ["SingleStream", "Server", "Offline"])
def test_an_error_of_the_model_ends_the_run_and_is_raised(scenario: Scenario) -> None:
    def failing(images: Images) -> Any:
        raise ValueError(f"no answer for {images.shape[1:]}")

    with pytest.raises(BenchmarkError, match=rf"session, student, {scenario}: no answer for \(28, 28\)"):
        run_loadgen(system(failing), scenario, SHORT, seed=0)


def test_the_check_fails_when_a_batch_is_answered_differently_from_its_samples() -> None:
    by_size = system(lambda images: np.full((len(images), 10), len(images) / 100))
    with pytest.raises(BenchmarkError, match=r"student: .* differ by 0\.99, expected at most"):
        by_size.check()


def test_without_loadgen_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(BenchmarkError, match=r"pip install 'distillery\[loadgen\]'"):
        run_loadgen(system(), "SingleStream", SHORT, seed=0)
