"""Every alert fires in a case that it is for, and does not in one that looks like it, by promtool."""

import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import yaml

from tests.monitoring.description import ALERTS, RULES, module

JOB = 'job="distillery", instance="serving:8000"'
STUDENT = f'{JOB}, model="student"'


@dataclass
class Case:
    """Series in promtool's notation, and the times in minutes at which the alert fires, and does not."""

    alert: str
    series: Mapping[str, str]
    fires: int
    quiet: tuple[int, ...]
    labels: Mapping[str, str]
    value: str
    """As the summary shows it."""
    interval_m: int = 1
    fixed: Mapping[str, str] = field(default_factory=dict)
    """Labels of the alert itself, besides its severity."""

    @property
    def name(self) -> str:
        return "-".join((self.alert, *self.fixed.values()))


def burn_cases() -> Iterator[Case]:
    """A short burst is no alert, a burn is one, and the alert ends with the burn."""
    slo = module("slo")
    minutes = {"5m": 5, "30m": 30, "1h": 60, "6h": 360, "3d": 4320}
    for objective in slo.OBJECTIVES:
        for burn in slo.BURNS:
            long, short = minutes[burn.long], minutes[burn.short]
            step = max(1, short // 6)
            ratio = 1.4 * burn.factor * objective.budget
            calm, burst, burning = long // step, short // step, long // step + 2
            bad = f"0x{calm - 1} {ratio:g}x{burst - 1} 0x{calm - 1} {ratio:g}x{burning} 0x{2 * burst}"
            labels = f'{{job="distillery", model="student", slo="{objective.name}"}}'
            yield Case(
                objective.alert,
                {
                    f"slo:distillery_events:rate5m{labels}": f"1x{2 * calm + burst + burning + 3 * burst}",
                    f"slo:distillery_bad_events:rate5m{labels}": bad,
                },
                fires=(2 * calm + burst + burning - 1) * step,
                quiet=((calm + burst - 1) * step, (2 * calm + burst + burning + burst + 1) * step),
                labels={"job": "distillery", "model": "student", "slo": objective.name},
                value=f"{ratio * 100:.4g}%",
                interval_m=step,
                fixed={"window": burn.long},
            )


CASES = [
    Case(
        "DistilleryDown",
        {f"up{{{JOB}}}": "1x5 0x10 1x20"},
        fires=9,
        quiet=(5, 7, 17),
        labels={"job": "distillery", "instance": "serving:8000"},
        value="",
    ),
    Case(
        "DistilleryProcessesRestart",
        {f'distillery_process_restarts_total{{{JOB}, process="api"}}': "0x20 1x2 2x2 3x60"},
        fires=28,
        quiet=(19, 24, 45),
        labels={"job": "distillery", "instance": "serving:8000", "process": "api"},
        value="3",
    ),
    Case(
        "DistilleryStudentNotFaster",
        {
            # slower by half from minute 20 on, at first for five minutes only
            f'distillery_inference_duration_seconds_sum{{{JOB}, model="teacher"}}': "0+1x80",
            f'distillery_batch_size_images_sum{{{JOB}, model="teacher"}}': "0+60x80",
            f"distillery_inference_duration_seconds_sum{{{STUDENT}}}": "0+0.25x20 5+2x5 15+0.25x20 20+2x40",
            f"distillery_batch_size_images_sum{{{STUDENT}}}": "0+60x90",
        },
        fires=70,
        quiet=(19, 26, 48),
        labels={"job": "distillery", "model": "student", "measure": "inference per image"},
        value="0.50",
    ),
    Case(
        "DistilleryDigitDrift",
        {
            f'distillery_predictions_total{{{STUDENT}, digit="{digit}"}}': growth
            for digit, growth in enumerate(["0+10x150 1500+100x150", *["0+10x300"] * 9])
        }
        | {f"distillery_images_total{{{STUDENT}}}": "0+100x150 15000+190x150"},
        fires=250,
        quiet=(140, 165),
        labels={"job": "distillery", "model": "student"},
        value="42.76%",
    ),
    Case(
        "DistilleryConfidenceDrift",
        {
            f"distillery_images_total{{{STUDENT}}}": "0+100x300",
            f"distillery_rejected_predictions_total{{{STUDENT}}}": "0+10x150 1500+40x150",
            f"distillery_model_validation_accepted_ratio{{{STUDENT}}}": "0.9x300",
        },
        fires=250,
        quiet=(140, 165),
        labels={"job": "distillery", "model": "student"},
        value="30%",
    ),
    Case(
        "DistilleryEventLoopLag",
        {
            f'distillery_event_loop_lag_seconds_bucket{{{JOB}, le="0.2"}}': "0+600x30 18000+540x40",
            f'distillery_event_loop_lag_seconds_bucket{{{JOB}, le="0.4"}}': "0+600x30 18000+600x40",
            f'distillery_event_loop_lag_seconds_bucket{{{JOB}, le="+Inf"}}': "0+600x30 18000+600x40",
        },
        fires=60,
        quiet=(29, 36),
        labels={"job": "distillery", "instance": "serving:8000"},
        value="380ms",
    ),
    Case(
        "DistilleryThrottled",
        {
            f"distillery_cpu_periods_total{{{JOB}}}": "0+600x120",
            f"distillery_cpu_throttled_periods_total{{{JOB}}}": "0+60x30 1800+300x90",
        },
        fires=80,
        quiet=(29, 40),
        labels={"job": "distillery", "instance": "serving:8000"},
        value="50%",
    ),
    Case(
        "DistilleryFileDescriptors",
        {
            f'distillery_process_open_fds{{{JOB}, process="api"}}': "1000x20 1800x40",
            f'distillery_process_max_fds{{{JOB}, process="api"}}': "1000x60",
            f'distillery_processes{{{JOB}, process="api"}}': "2x60",
        },
        fires=40,
        quiet=(19, 24),
        labels={"job": "distillery", "instance": "serving:8000", "process": "api"},
        value="90%",
    ),
    *burn_cases(),
]


def rule_of(case: Case) -> dict[str, Any]:
    named = [rule for rule in ALERTS if rule["alert"] == case.alert]
    (rule,) = [rule for rule in named if case.fixed.items() <= rule["labels"].items()]
    return rule


def annotations(case: Case) -> dict[str, str]:
    """The alert's annotations, with the labels and the value of the case."""
    filled = {
        name: re.sub(
            r"\{\{ \$labels\.(\w+) \}\}|\{\{.*?\$value.*?\}\}",
            lambda found: case.labels[found[1]] if found[1] else case.value,
            text,
        )
        for name, text in rule_of(case)["annotations"].items()
    }
    assert not [text for text in filled.values() if "{{" in text]
    return filled


def document(case: Case) -> dict[str, Any]:
    """The case as a file of `promtool test rules`."""

    def expected(minute: int) -> dict[str, Any]:
        labels = {**case.labels, **case.fixed, "severity": rule_of(case)["labels"]["severity"]}
        alerts = (
            [{"exp_labels": labels, "exp_annotations": annotations(case)}] if minute == case.fires else []
        )
        return {"eval_time": f"{minute}m", "alertname": case.alert, "exp_alerts": alerts}

    interval = f"{case.interval_m}m"
    series = [{"series": name, "values": values} for name, values in case.series.items()]
    test = {
        "interval": interval,
        "input_series": series,
        "alert_rule_test": [expected(minute) for minute in (*case.quiet, case.fires)],
    }
    return {"rule_files": ["rules.yml"], "evaluation_interval": interval, "tests": [test]}


@pytest.mark.prometheus
@pytest.mark.skipif(not which("promtool"), reason="no promtool: make system installs it")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_alert_fires_when_it_should_and_only_then(case: Case, tmp_path: Path) -> None:
    found = document(case)
    # The alerts of one objective have one name, and promtool compares all that fire with it. One group: promtool
    # evaluates groups in any order, and an evaluation an hour ago is too old to be seen.
    rules = [rule for rule in RULES if "record" in rule or rule == rule_of(case)]
    if case.fixed:
        rules = [rule for rule in rules if not rule.get("record", "").startswith("job_")]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    (tmp_path / "case.yml").write_text(yaml.safe_dump(found))
    run = subprocess.run(
        ["promtool", "test", "rules", "case.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_alert_has_a_case() -> None:
    cases = {(case.alert, case.fixed.get("window")) for case in CASES}
    assert cases == {(rule["alert"], rule["labels"].get("window")) for rule in ALERTS}
    assert all(case.quiet for case in CASES)
