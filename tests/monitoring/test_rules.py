"""The recording rules and alerts, checked by promtool."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import copy, which
from typing import Any

import pytest
import yaml

DOCKER = Path(__file__).parents[2] / "docker"
FOLDER = DOCKER / "prometheus"
RULES = [
    rule for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]
]
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
    promtool(FOLDER, *arguments)


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
    document: dict[str, Any] = yaml.safe_load((FOLDER / "rules.test.yml").read_text())
    document["evaluation_interval"] = "60s"
    for test in document["tests"]:
        assert test["interval"] == "15s"
        test["interval"] = "60s"
        for series in test["input_series"]:
            series["values"] = " ".join(list(samples(series["values"]))[::4])
    copy(FOLDER / "rules.yml", tmp_path)
    (tmp_path / "at-60-s.test.yml").write_text(yaml.safe_dump(document))
    promtool(tmp_path, "test", "rules", "at-60-s.test.yml")


def test_every_window_holds_four_scrapes() -> None:
    windows = re.findall(r"\[(\d+)m\]", " ".join(rule["expr"] for rule in RULES))
    assert windows
    assert min(map(int, windows)) * 60 >= 4 * LONGEST_INTERVAL_S
    assert [rule["record"] for rule in RULES if "[5m]" in rule["expr"] and "5m" not in rule["record"]] == []


def test_grafana_knows_the_scrape_interval() -> None:
    """It derives `$__rate_interval` from it."""
    prometheus = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["global"]
    provisioning = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yml").read_text())
    interval = provisioning["datasources"][0]["jsonData"]["timeInterval"]
    assert interval == prometheus["scrape_interval"] == prometheus["evaluation_interval"]


def test_every_rule_has_a_test() -> None:
    names = {rule.get("record") or rule["alert"] for rule in RULES}
    tested = (FOLDER / "rules.test.yml").read_text()
    assert names
    assert not [name for name in names if name not in tested]
