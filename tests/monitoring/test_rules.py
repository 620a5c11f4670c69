"""The recording rules and alerts, checked by promtool."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import copy, which
from typing import Any

import pytest
import yaml

from tests.monitoring.description import DOCKER, PROMETHEUS, RULES

LONGEST_INTERVAL_S = 60
"""Prometheus's default scrape interval."""
STEP = re.compile(r"(?P<start>[\d.]+)(?:\+(?P<growth>[\d.]+))?x(?P<steps>\d+)")
no_promtool = pytest.mark.skipif(not which("promtool"), reason="no promtool: make system installs it")


def promtool(folder: Path, *arguments: str) -> None:
    run = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.prometheus
@no_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "--lint-fatal", "rules.yml"),
        ("test", "rules", "rules.test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_accepts_them(arguments: tuple[str, ...]) -> None:
    promtool(PROMETHEUS, *arguments)


def samples(values: str) -> Iterator[str]:
    """Expand promtool's notation for a series: "1x2 0+5x3" is 1, 1, 1, 0, 5, 10, 15."""
    for part in values.split():
        step = STEP.fullmatch(part)
        assert step, part
        growth = float(step["growth"] or 0)
        yield from (f"{float(step['start']) + growth * index:.9g}" for index in range(int(step["steps"]) + 1))


@pytest.mark.prometheus
@no_promtool
def test_the_rules_hold_at_a_scrape_interval_of_60_s(tmp_path: Path) -> None:
    document: dict[str, Any] = yaml.safe_load((PROMETHEUS / "rules.test.yml").read_text())
    document["evaluation_interval"] = "60s"
    for test in document["tests"]:
        assert test["interval"] == "15s"
        test["interval"] = "60s"
        for series in test["input_series"]:
            series["values"] = " ".join(list(samples(series["values"]))[::4])
    copy(PROMETHEUS / "rules.yml", tmp_path)
    (tmp_path / "at-60-s.test.yml").write_text(yaml.safe_dump(document))
    promtool(tmp_path, "test", "rules", "at-60-s.test.yml")


def test_every_window_holds_four_scrapes() -> None:
    windows = re.findall(r"\[(\d+)m\]", " ".join(rule["expr"] for rule in RULES))
    assert windows
    assert min(map(int, windows)) * 60 >= 4 * LONGEST_INTERVAL_S


def test_grafana_knows_the_scrape_interval() -> None:
    """It derives `$__rate_interval` from it."""
    prometheus = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]
    provisioning = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yml").read_text())
    interval = provisioning["datasources"][0]["jsonData"]["timeInterval"]
    assert interval == prometheus["scrape_interval"] == prometheus["evaluation_interval"]


def test_every_recorded_quantity_has_a_test() -> None:
    """Windows of one share have one expression; a prior is a constant, and an error budget left is another form."""
    names = {re.sub(r"rate(1h|6h|3d)$", "rate30m", rule["record"]) for rule in RULES if "record" in rule}
    tested = (PROMETHEUS / "rules.test.yml").read_text()
    untested = [name for name in sorted(names) if name not in tested]
    assert untested == [
        "digit:distillery_training_prior:ratio",
        "slo:distillery_bad_events:rate5m",
        "slo:distillery_burn:ratio_rate30m",
        "slo:distillery_error_budget:ratio",
        "slo:distillery_error_budget_left:ratio30d",
        "slo:distillery_events:rate5m",
    ]


def test_the_priors_are_the_frequencies_of_the_training_digits() -> None:
    priors = [float(rule["expr"][7:-1]) for rule in RULES if "training_prior" in rule.get("record", "")]
    assert len(priors) == 10
    assert sum(priors) == pytest.approx(1, abs=1e-3)
