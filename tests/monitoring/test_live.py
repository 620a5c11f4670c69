"""A real Prometheus and Alertmanager next to a service under load: every expression has data, a fault has an alert.

Configuration, rules and dashboards are those of compose.yaml, except for addresses and speed: scrapes are 30 times as
frequent, and the windows of the rules 60 times as short.
"""

import contextlib
import http.client
import json
import math
import re
import select
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shutil import which
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from benchmarks.load.http import SERVICE_CPU_LAG_S, cases_of, measure_http, service_cpu
from benchmarks.load.workloads import service_workload
from benchmarks.results.ratio import Ratio
from tests.monitoring.description import ALERTS, DOCKER, RULES
from tests.monitoring.test_dashboards import DASHBOARDS, TARGETS, selectors
from tests.support.prometheus import Notifications, Prometheus, running_alertmanager, running_prometheus
from tests.support.requests.connections import connect, post
from tests.support.service import ROOT, running_service
from tests.support.training.samples import sample_test

pytestmark = [
    pytest.mark.timeout(300),  # trains and exports small models first, and waits for a real clock
    pytest.mark.prometheus,
    pytest.mark.skipif(not which("prometheus"), reason="no prometheus: make system installs it"),
    pytest.mark.skipif(
        not which("prometheus-alertmanager"), reason="no alertmanager: make system installs it"
    ),
]

SCALED_OBJECT = ROOT / "deploy/kubernetes/components/keda/scaled-object.yaml"
PATIENCE_S = 60
FASTER = 60
MODELS = ("teacher", "student", "student-int8", "student-alone")
RECORDED = {
    f"{rule['record']} {' '.join(rule.get('labels', {}).values())}".strip(): rule
    for rule in RULES
    if "record" in rule
}
TRIGGERS = {
    trigger["name"]: trigger["metadata"]
    for trigger in yaml.safe_load(SCALED_OBJECT.read_text())["spec"]["triggers"]
}
"""Queries and thresholds by which KEDA scales."""
ROUNDS_PER_S = 10
MAX_IN_FLIGHT = 4
"""In each of two API processes."""
BURST = 40
BURSTS = 4
FAULT_SHARE = 0.05
"""Of all requests that fail, at least; the alert fires at 1.44 %."""
FAULT = "DistilleryAvailability 1h"
"""The alert on server errors."""


@dataclass
class Load:
    """A bounded load in a thread: every model, one image and eight, and invalid requests; counts the responses."""

    url: str
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        digits = sample_test().images.tolist()
        wrong = json.dumps({"image": [[256] * 28] * 28})
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=10)
        with contextlib.closing(connection):
            for number in range(2 * PATIENCE_S * ROUNDS_PER_S):
                first = number * 8 % (len(digits) - 8)
                one = json.dumps({"image": digits[first]})
                eight = json.dumps({"images": digits[first : first + 8]})
                for model in MODELS:
                    self.ask(connection, model, one, images=1)
                    self.ask(connection, model, eight, images=8)
                    self.ask(connection, model, wrong)
                self.ask(connection, "nobody", one)
                self.label(connection, number, one)
                if self.stop.wait(1 / ROUNDS_PER_S):
                    return

    def burst(self) -> None:
        """Send requests at once, all but their last byte: more than the service admits, so the others get 503."""
        request = post("/predict/teacher", json.dumps({"image": sample_test().images[0].tolist()}).encode())
        with contextlib.ExitStack() as opened:
            connections = [opened.enter_context(contextlib.closing(connect(self.url))) for _ in range(BURST)]
            for connection in connections:
                connection.sendall(request[:-1])
            rejected: list[socket.socket] = []
            while len(rejected) < BURST - 2 * MAX_IN_FLIGHT:
                rejected = select.select(connections, [], [], PATIENCE_S)[0]
                assert rejected
            for connection in connections:
                if connection not in rejected:
                    connection.sendall(request[-1:])
                answer = opened.enter_context(contextlib.closing(http.client.HTTPResponse(connection)))
                answer.begin()
                # The requests of `run` occupy places too: one more of the burst can be rejected after the loop.
                assert answer.status == 503 or (answer.status == 200 and connection not in rejected)
                self.answers["teacher", answer.status] += 1
                self.images["teacher"] += answer.status == 200

    def label(self, connection: http.client.HTTPConnection, number: int, body: str) -> None:
        """Classify a digit, and send the digit of the request before."""
        headers = {"Content-Type": "application/json", "X-Request-ID": f"labelled-{number}"}
        connection.request("POST", "/predict/student", body, headers)
        answer = connection.getresponse()
        answer.read()
        self.answers["student", answer.status] += 1
        self.images["student"] += answer.status == 200
        if number:
            label = json.dumps({"id": f"labelled-{number - 1}", "digit": number % 10})
            connection.request("POST", "/feedback", label, {"Content-Type": "application/json"})
            connection.getresponse().read()

    def ask(self, connection: http.client.HTTPConnection, model: str, body: str, *, images: int = 0) -> None:
        connection.request("POST", f"/predict/{model}", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        self.answers[model if model in MODELS else "", answer.status] += 1
        if answer.status == 200:
            self.images[model] += images


Series = list[tuple[dict[str, str], float]]


@dataclass
class Monitored:
    """The service and its Prometheus after a load and a fault, and what Prometheus showed meanwhile."""

    service: str
    prometheus: Prometheus
    notifications: Notifications
    load: Load
    measured: dict[str, Ratio]
    """By `distillery-bench`: how much less the student takes than the teacher."""
    shown: dict[str, float]
    """By Prometheus, of the same load."""
    before: dict[str, Series]
    """Counts before the load."""
    panels: dict[str, Series]
    rules: dict[str, Series]
    selected: dict[str, Series]
    """The series of the alerts."""


def wait_for(prometheus: Prometheus, expression: str, *, series: int = 1) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):  # not listening or not ready yet
            if len(prometheus.query(expression)) >= series:
                return
        time.sleep(0.1)
    raise AssertionError(f"{expression} did not have {series} series within {PATIENCE_S} s")


def wait_for_a_scrape(prometheus: Prometheus) -> None:
    """Wait until what was counted before has been published and scraped."""
    wait_for(prometheus, f"timestamp(up) > {time.time() + 1}")


def substituted(expression: str, window: str) -> str:
    """The expression as Grafana sends it with everything chosen."""
    for name in ("job", "instance", "model"):
        expression = expression.replace(f"${name}", ".+")
    return expression.replace("$__rate_interval", window).replace("$price", "0.04")


def benchmark(url: str) -> dict[str, Ratio]:
    """Measure teacher and student in interleaved rounds, as `distillery-bench http` does."""
    workloads = [service_workload(url, model, "json", server="service") for model in ("teacher", "student")]
    teacher, student = measure_http(
        cases_of(workloads, [1]),
        rounds=5,
        seconds=0.4,
        tool="python",
        cpu={"service": partial(service_cpu, url)},
        cpu_lag_s=SERVICE_CPU_LAG_S,
    )
    return {
        shown: Ratio.within_rounds(student["rounds"][name], teacher["rounds"][name], lower_is_better=True)
        for name, shown in (("cpu_us", "CPU time per image"), ("p50_ms", "response p50"))
    }


def speedups(prometheus: Prometheus, seconds: float) -> dict[str, float]:
    """The student's speedups by the panel of the dashboard, over the last seconds."""
    (panel,) = [
        one for one in DASHBOARDS["distillation"]["panels"] if one["title"] == "Speedup over the teacher (×)"
    ]
    found = {}
    for target in panel["targets"]:
        expression = substituted(target["expr"], f"{math.ceil(seconds)}s")
        values = {labels["model"]: value for labels, value in prometheus.query(expression)}
        found[target["legendFormat"].removeprefix("{{model}} · ")] = values["student"]
    return found


@pytest.fixture(scope="module")
def monitored(model_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    """Two API processes: a benchmark, a load until every rule has a value, a burst of errors until its alert ends."""
    folder = tmp_path_factory.mktemp("prometheus")
    flags = ("--api-servers", "2", "--max-in-flight", str(MAX_IN_FLIGHT))
    with (
        Notifications() as notifications,
        running_service(model_repository, *flags) as service,
        running_alertmanager(folder, notifications.url) as alertmanager,
        running_prometheus([service.url], folder, faster=FASTER, alertmanager=alertmanager) as prometheus,
    ):
        wait_for(prometheus, "up == 1")
        started = time.monotonic()
        measured = benchmark(service.url)
        wait_for_a_scrape(prometheus)
        shown = speedups(prometheus, time.monotonic() - started)
        before = {name: prometheus.query(expression) for name, expression in COUNTS.items()}
        load = Load(service.url)
        thread = threading.Thread(target=load.run)
        thread.start()
        try:
            wait_for(prometheus, "slo:distillery_error_budget_left:ratio30d", series=3 * len(MODELS))
            wait_for(
                prometheus, 'job_model:distillery_speedup_over_teacher:ratio{model="student-alone"}', series=4
            )
            time.sleep(5)  # a window of rates
            panels = {
                name: prometheus.query(substituted(expression, "5s")) for name, expression in TARGETS.items()
            }
            rules = {name: prometheus.query(selector_of(rule)) for name, rule in RECORDED.items()}
            selected = {
                f"{name}{matchers}": prometheus.query(f"{name}{matchers}")
                for rule in ALERTS
                for name, matchers, _ in selectors(rule["expr"])
            }
            # On a fast machine, the benchmark has sent more: the alert is on the share of errors.
            sent = prometheus.query("sum(distillery_requests_total)")[0][1]
            for _ in range(max(BURSTS, math.ceil(FAULT_SHARE * sent / (BURST - 2 * MAX_IN_FLIGHT)))):
                load.burst()
            expect(notifications, (FAULT, "firing"))
            expect(notifications, (FAULT, "resolved"))
        finally:
            load.stop.set()
            thread.join()
        wait_for_a_scrape(prometheus)
        yield Monitored(
            service.url, prometheus, notifications, load, measured, shown, before, panels, rules, selected
        )


def expect(notifications: Notifications, event: tuple[str, str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while event not in notifications.received:
        assert time.monotonic() < deadline, f"{event} is not among {notifications.received}"
        time.sleep(0.1)


def selector_of(rule: dict[str, Any]) -> str:
    matchers = ", ".join(f'{name}="{value}"' for name, value in rule.get("labels", {}).items())
    return f"{rule['record']}{{{matchers}}}"


COUNTS = {
    "answers": "sum by (model, status) (distillery_requests_total)",
    "images": "sum by (model) (distillery_images_total)",
    "predictions": "sum(distillery_predictions_total)",
    "batches": "sum(distillery_batch_size_images_sum)",
}


def growth(monitored: Monitored, name: str) -> dict[tuple[str, ...], float]:
    """How much the counts have grown during the load, by the values of their labels."""

    def by_labels(series: Series) -> dict[tuple[str, ...], float]:
        return {
            tuple(labels.get(label, "") for label in re.findall(r"by \((.*?)\)", COUNTS[name])[0].split(", "))
            if "by" in COUNTS[name]
            else (): value
            for labels, value in series
        }

    before, after = by_labels(monitored.before[name]), by_labels(monitored.prometheus.query(COUNTS[name]))
    return {key: value - before[key] for key, value in after.items() if value != before[key]}


@pytest.mark.parametrize("name", TARGETS)
def test_every_panel_has_data(monitored: Monitored, name: str) -> None:
    found = monitored.panels[name]
    assert found, f"no data for {TARGETS[name]}"
    assert all(math.isfinite(value) for _, value in found), found


@pytest.mark.parametrize("name", RECORDED)
def test_every_rule_has_data(monitored: Monitored, name: str) -> None:
    found = monitored.rules[name]
    assert all(math.isfinite(value) for _, value in found), found
    models = {labels["model"] for labels, _ in found if "model" in labels}
    assert models in (set(MODELS), {*MODELS} - {"teacher"}, set())
    assert found


def test_every_alert_has_data(monitored: Monitored) -> None:
    assert [selector for selector, found in monitored.selected.items() if not found] == []
    assert len(monitored.selected) > 20


def test_every_rule_is_evaluated_without_an_error(monitored: Monitored) -> None:
    rules = [rule for group in monitored.prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(RULES)
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []


def test_the_speedup_is_that_of_the_benchmark(monitored: Monitored) -> None:
    """Within the spread of its rounds, and what differs: the benchmark's client includes HTTP in response times."""
    for quantity, margin in (("CPU time per image", 1.3), ("response p50", 2)):
        ratio, shown = monitored.measured[quantity], monitored.shown[quantity]
        assert ratio.low / margin < shown < ratio.high * margin, (quantity, str(ratio), shown)


def test_a_fault_raises_its_alert_which_is_resolved(monitored: Monitored) -> None:
    received = monitored.notifications.received
    assert received.index((FAULT, "firing")) < received.index((FAULT, "resolved"))
    assert not {name for name, _ in received} & {"DistilleryDown", "DistilleryProcessesRestart"}
    firing = 'ALERTS{alertname="DistilleryAvailability", alertstate="firing", window="1h"}'
    assert monitored.prometheus.query(firing) == []
    fired = [labels for labels, _ in monitored.prometheus.query(f"max_over_time({firing}[5m])")]
    assert "teacher" in {
        labels["model"] for labels in fired
    }  # on a busy machine, the burst affects others as well
    assert {(labels["severity"], labels["job"]) for labels in fired} == {("critical", "distillery")}


@pytest.mark.parametrize("name", ["job", "instance", "model"])
def test_the_dashboards_variables_have_values(monitored: Monitored, name: str) -> None:
    expected = {"job": {"distillery"}, "instance": {urlsplit(monitored.service).netloc}, "model": set(MODELS)}
    for dashboard in ("distillation", "service"):
        variables = {one["name"]: one for one in DASHBOARDS[dashboard]["templating"]["list"]}
        asked = re.fullmatch(r"label_values\((.*), (\w+)\)", variables[name]["query"]["query"])
        assert asked
        values = monitored.prometheus.get(
            f"label/{asked[2]}/values", **{"match[]": substituted(asked[1], "")}
        )
        assert set(values) == expected[name]


def test_prometheus_counts_what_the_client_counted(monitored: Monitored) -> None:
    """The counts of both API processes are included, once."""
    answers = {(model, str(status)): n for (model, status), n in monitored.load.answers.items()}
    assert growth(monitored, "answers") == answers
    assert growth(monitored, "images") == {(model,): n for model, n in monitored.load.images.items()}
    assert growth(monitored, "predictions") == {(): monitored.load.images.total()}
    assert growth(monitored, "batches") == {(): monitored.load.images.total()}
    assert monitored.prometheus.query("sum(distillery_requests_in_flight)")[0][1] == 0


def test_a_burst_of_errors_between_two_scrapes_has_a_rate(monitored: Monitored) -> None:
    """Prometheus takes the first value of a series that appears for no increase; all series exist from the start."""
    burst = sum(n for (_, status), n in monitored.load.answers.items() if status == 503)
    assert burst >= BURSTS * (BURST - 2 * MAX_IN_FLIGHT)
    errors = 'sum(increase(distillery_requests_total{status="503"}[5m]))'
    ((_, increase),) = monitored.prometheus.query(errors)
    assert increase == pytest.approx(burst, rel=0.2)  # extrapolated to the ends of the window
    reason = 'sum(distillery_rejected_requests_total{reason="overloaded"})'
    assert monitored.prometheus.query(reason) == [({}, burst)]


@pytest.mark.parametrize("name", TRIGGERS)
def test_autoscaling_has_one_value_under_load_about_none_when_idle_and_no_value_without_a_service(
    monitored: Monitored, name: str
) -> None:
    """No value is an error for KEDA, which leads to the number of replicas of its fallback."""
    query = TRIGGERS[name]["query"]
    [(labels, value)] = monitored.prometheus.query(query)
    assert labels == {}
    assert value > 0
    assert math.isfinite(value)
    assert "[2m]" in query
    idle = query.replace("[2m]", "[3s]")
    wait_for(monitored.prometheus, f"({idle}) < {TRIGGERS[name]['activationThreshold']}")
    assert monitored.prometheus.query(query.replace('job="distillery"', 'job="nobody"')) == []


def test_promtool_accepts_the_metrics(monitored: Monitored) -> None:
    text = httpx.get(f"{monitored.service}/metrics", timeout=10).content
    run = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()
    assert run.stderr == b""


def test_the_configuration_of_alertmanager_is_valid() -> None:
    file = DOCKER / "alertmanager/alertmanager.yml"
    run = subprocess.run(["amtool", "check-config", file], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
