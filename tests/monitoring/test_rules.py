"""The recording rules and alerts, checked by promtool."""

import subprocess
from pathlib import Path
from shutil import which

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "docker" / "prometheus"


@pytest.mark.prometheus
@pytest.mark.skipif(not which("promtool"), reason="no promtool: make system installs it")
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
    run = subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_rule_has_a_test() -> None:
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    rules = {rule.get("record") or rule["alert"] for group in groups for rule in group["rules"]}
    tested = (FOLDER / "rules.test.yml").read_text()
    assert rules
    assert not [rule for rule in rules if rule not in tested]
