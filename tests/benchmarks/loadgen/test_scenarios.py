"""Rounds of the scenarios, and the search for the highest rate."""

import numpy as np
import pytest

from benchmarks.commands.scenarios import Scenarios
from benchmarks.loadgen.run import Scenario, System
from benchmarks.loadgen.scenarios import find_peak, run_scenario
from benchmarks.loadgen.session import SessionSystem


@pytest.mark.parametrize("step", [2, 1.2])
@pytest.mark.parametrize("guess", [20, 690, 5000])
def test_the_search_finds_the_highest_rate_from_below_and_from_above(guess: float, step: float) -> None:
    tried = []

    def passes(rate: float) -> bool:
        tried.append(rate)
        return rate <= 700

    rate = find_peak(passes, guess, floor=10, step=step)
    assert rate is not None
    assert 700 / 1.05 <= rate <= 700
    assert rate in tried


def test_the_search_returns_none_when_the_lowest_rate_fails() -> None:
    tried = []

    def passes(rate: float) -> bool:
        tried.append(rate)
        return False

    assert find_peak(passes, 1000, floor=66) is None
    assert min(tried) == 66


def fast(model: str) -> System:
    return SessionSystem(model, lambda images: np.full((len(images), 10), 0.1, np.float32), threads=1)


@pytest.mark.parametrize("scenario", ["SingleStream", "MultiStream", "Offline"])
def test_a_row_has_the_median_of_its_rounds_and_the_improvement_over_the_teacher(scenario: Scenario) -> None:
    pytest.importorskip("mlperf_loadgen")
    rules = Scenarios(seconds=0.05, rounds=3, samples=640)
    teacher, student = run_scenario(scenario, [fast("teacher"), fast("student")], rules)
    assert [row["model"] for row in (teacher, student)] == ["teacher", "student"]
    assert teacher["ratio"] is None
    assert student["ratio"]["rounds"] == 3
    for row in (teacher, student):
        assert row["figure"] == sorted(row["rounds"]["figure"])[1] > 0
        assert row["queries"] >= 3


@pytest.mark.slow
def test_server_searches_a_rate_in_every_round() -> None:
    pytest.importorskip("mlperf_loadgen")
    rules = Scenarios(seconds=0.1, rounds=2, bound_ms=100)
    (row,) = run_scenario("Server", [fast("student")], rules)
    assert row["ratio"] is None  # no teacher
    assert len(row["search"]) == 2
    for figure, search in zip(row["rounds"]["figure"], row["search"], strict=True):
        valid = [run["rate"] for run in search if run["valid"]]
        assert figure == (max(valid) if valid else None)
        seeds = [run["seed"] for run in search]
        assert len(set(seeds)) == len(seeds)
