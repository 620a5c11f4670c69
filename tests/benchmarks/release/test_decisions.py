"""Decisions of the release rule on real services: drawn digits have their error rates, and the service decides."""

import json
from math import sqrt
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import COMMANDS
from benchmarks.errors import BenchmarkError
from benchmarks.release.digits import MIN_DIGITS, Groups
from benchmarks.release.simulation import Setting, simulate_rule
from benchmarks.report.rows import uncounted_requests, wrong_decisions
from benchmarks.results.files import latest, read_result
from distillery import main
from serving.model.release import Rule

RULE = Rule(criteria=("wrong",))
COUNT = 20_000
FOUR_ERRORS = 4 * sqrt(0.25 / COUNT)
"""At most: of a share among `COUNT` draws."""


def predictions(wrong: slice, labels: np.ndarray) -> np.ndarray:
    found = labels.copy()
    found[wrong] = (found[wrong] + 1) % 10
    return found


LABELS = np.arange(10_000) % 10


@pytest.mark.parametrize("ratio", [1.0, 2.0])
def test_the_drawn_digits_have_the_error_rates(ratio: float) -> None:
    stable, candidate = predictions(slice(80), LABELS), predictions(slice(40, 200), LABELS)
    groups = Groups.of(LABELS, stable, candidate)
    places = groups.draw(0.05, ratio * 0.05, COUNT, np.random.default_rng(0))
    assert np.mean(stable[places] != LABELS[places]) == pytest.approx(0.05, abs=FOUR_ERRORS)
    assert np.mean(candidate[places] != LABELS[places]) == pytest.approx(ratio * 0.05, abs=FOUR_ERRORS)
    assert len(set(places[places >= 200])) > 0.8 * 9800  # of the digits on which both are right


def test_a_group_of_few_digits_is_left_out() -> None:
    stable, candidate = predictions(slice(80), LABELS), predictions(slice(79, 200), LABELS)
    groups = Groups.of(LABELS, stable, candidate)
    assert len(groups.wrong) < MIN_DIGITS
    assert groups.weights(0.05, 0.1).tolist() == pytest.approx([0.85, 0.1, 0.05, 0])


@pytest.mark.parametrize(
    ("stable", "candidate", "message"),
    [
        (slice(MIN_DIGITS - 1), slice(100, 200), "the stable model is wrong about 9 of the test digits"),
        (slice(100), slice(101), "the candidate alone is wrong about 1 of the test digits"),
    ],
)
def test_too_few_errors_are_an_error_with_the_fix(stable: slice, candidate: slice, message: str) -> None:
    groups = Groups.of(LABELS, predictions(stable, LABELS), predictions(candidate, LABELS))
    with pytest.raises(BenchmarkError, match=f"{message}, at least 10 are needed; .* with --models"):
        groups.weights(0.05, 0.1)


def test_the_simulated_rule_stops_a_worse_candidate_and_promotes_an_equal_one() -> None:
    setting = Setting(rate=0.1, share=0.5, block=200)
    worse = simulate_rule(setting, 2.0, RULE, streams=100, limit=50_000, seed=0)
    equal = simulate_rule(setting, 1.0, RULE, streams=100, limit=50_000, seed=0)
    assert [decision for decision, _ in worse].count(
        "rollback"
    ) >= 95  # wrong with a probability of at most 1 %
    assert [decision for decision, _ in equal].count("promote") >= 95
    assert 100 < np.median([requests for _, requests in worse]) < 3000


def test_the_simulated_rule_gives_up_at_the_limit() -> None:
    setting = Setting(rate=0.01, share=0.5, block=50)
    assert set(simulate_rule(setting, 1.0, RULE, streams=5, limit=100, seed=0)) == {(None, np.inf)}


def test_wrong_decisions_are_compared_with_the_bound_of_the_rule() -> None:
    rounds = [{"decision": decision} for decision in ("promote", "promote", "rollback", None)]
    row = {"right": "promote", "live": {"streams": 4}, "rounds": rounds}
    found = wrong_decisions({"rows": [row], "rule": {"alpha": 0.05}, "criteria": 5})
    assert (found["wrong"], found["candidates"]) == (1, 4)
    assert found["probability"] == pytest.approx(1 - 0.99**4)  # of at least one in four


def test_requests_that_a_decision_has_not_counted_are_those_beyond_both_arms() -> None:
    decided = {"decision": "rollback", "sent": 300, "stable": [1, 100], "candidate": [9, 120]}
    assert uncounted_requests({"rounds": [decided, decided | {"decision": None, "sent": 9000}]}) == 80


@pytest.mark.slow
def test_a_real_service_stops_the_worse_candidate_and_promotes_the_equal_one(
    model_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["decisions", "--models-dir", str(model_repository), "--models", "student,student-alone"]
    arguments += ["--rates", "0.2", "--live", "3", "--equal", "2", "--services", "2", "--requests", "150"]
    arguments += ["--limit", "6000", "--streams", "50", "--results-dir", str(tmp_path)]
    assert main("distillery-bench", COMMANDS, arguments=arguments) == 0
    printed = capsys.readouterr().out
    path = latest("decisions", folder=tmp_path)
    assert path
    worse, equal = read_result(path)["data"]["rows"]
    # Decisions are right with a probability of 99 % each.
    assert worse["live"]["rollback"] >= 2
    assert equal["live"]["promote"] >= 1
    for row in (worse, equal):
        assert row["live"]["failed"] == 0
        for stream in row["rounds"]:
            assert stream["sent"] >= stream["stable"][1] + stream["candidate"][1] > 0
    stable, candidate = worse["live"]["error_rates"]
    assert stable < candidate
    assert "failed" in printed
    assert [row["rate"] for row in json.loads(printed.splitlines()[-1])["rows"]] == [0.2, 0.2]


@pytest.mark.parametrize("option", ["--rates=0.5", "--share=1", "--alpha=0", "--tolerance=1", "--limit=0"])
def test_impossible_settings_are_rejected(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("distillery-bench", COMMANDS, arguments=["decisions", option]) == 2
    assert option.partition("=")[0].strip("-") in capsys.readouterr().err
