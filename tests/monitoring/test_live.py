"""A real Prometheus scrapes the real service under a short load; every expression of dashboard and rules has a value.

Configuration and rules are those of compose.yaml, except for the target's address and the intervals.
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
from pathlib import Path
from shutil import which
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
import yaml

from tests.support.requests.connections import connect, post
from tests.support.service import free_port, running_service
from tests.support.training.samples import sample_test

pytestmark = [
    pytest.mark.timeout(300),  # trains and exports small models first, and waits for a real clock
    pytest.mark.prometheus,
    pytest.mark.skipif(not which("prometheus"), reason="no prometheus: make system installs it"),
]

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARD = json.loads((DOCKER / "grafana/dashboards/distillery.json").read_text())
RULES = [
    rule
    for group in yaml.safe_load((DOCKER / "prometheus/rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
PATIENCE_S = 60
MODELS = ("teacher", "student", "student-int8", "student-alone")
PANELS = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}
RECORDED = {
    rule["record"] + "".join(f" {value}" for value in rule.get("labels", {}).values()): rule["expr"]
    for rule in RULES
    if "record" in rule
}
ROUNDS_PER_S = 20
MAX_IN_FLIGHT = 4
"""In each of two API processes."""
BURST = 40


@dataclass
class Load:
    """A bounded load in a thread: every model, one image and eight, and invalid requests; counts the responses."""

    url: str
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        digits = sample_test().images.tolist()
        one, eight = json.dumps({"image": digits[0]}), json.dumps({"images": digits[:8]})
        wrong = json.dumps({"image": [[256] * 28] * 28})
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=10)
        with contextlib.closing(connection):
            for _ in range(PATIENCE_S * ROUNDS_PER_S):
                for model in MODELS:
                    self.ask(connection, model, one, images=1)
                    self.ask(connection, model, eight, images=8)
                    self.ask(connection, model, wrong)
                self.ask(connection, "nobody", one)
                if self.stop.wait(1 / ROUNDS_PER_S):
                    return

    def burst(self) -> None:
        """Send requests at once, all but their last byte: more than the service admits, so the others get 503."""
        request = post("/predict/teacher", json.dumps({"image": sample_test().images[0].tolist()}).encode())
        connections = [connect(self.url) for _ in range(BURST)]
        for connection in connections:
            connection.sendall(request[:-1])
        rejected: list[socket.socket] = []
        while len(rejected) < BURST - 2 * MAX_IN_FLIGHT:
            rejected = select.select(connections, [], [], PATIENCE_S)[0]
            assert rejected
        for connection in connections:
            if connection not in rejected:
                connection.sendall(request[-1:])
            with contextlib.closing(connection), http.client.HTTPResponse(connection) as answer:
                answer.begin()
                assert answer.status == (503 if connection in rejected else 200)
                self.answers["teacher", answer.status] += 1
                self.images["teacher"] += answer.status == 200

    def ask(self, connection: http.client.HTTPConnection, model: str, body: str, *, images: int = 0) -> None:
        connection.request("POST", f"/predict/{model}", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        self.answers[model if model in MODELS else "", answer.status] += 1
        if answer.status == 200:
            self.images[model] += images


@dataclass
class Monitored:
    """The service, its Prometheus, and the load that has just ended."""

    service: str
    prometheus: str
    load: Load

    def ask(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The present value of an expression: labels and number of each series."""
        url = f"{self.prometheus}/api/v1/query?query={quote(expression)}"
        document = httpx.get(url, timeout=10).raise_for_status().json()
        assert isinstance(document, dict)
        data: dict[str, Any] = document["data"]
        assert data["resultType"] == "vector"
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]


@contextlib.contextmanager
def running_prometheus(service: str, folder: Path) -> Iterator[str]:
    """Run Prometheus 2 with our configuration and rules, scraping twice a second."""
    configuration = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    configuration["rule_files"] = [str(DOCKER / "prometheus/rules.yml")]
    (job,) = configuration["scrape_configs"]
    job["static_configs"][0]["targets"] = [urlsplit(service).netloc]
    job["scrape_timeout"] = "500ms"
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    address = f"127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def monitored(model_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    """Two API processes under load until the last rule has its first value (or a timeout), then idle."""
    with (
        running_service(
            model_repository, "--api-servers", "2", "--max-in-flight", str(MAX_IN_FLIGHT)
        ) as service,
        running_prometheus(service.url, tmp_path_factory.mktemp("prometheus")) as prometheus,
    ):
        monitored = Monitored(service.url, prometheus, Load(service.url))
        thread = threading.Thread(target=monitored.load.run)
        thread.start()
        try:
            wait_for(monitored, "model:distillery_speedup_over_teacher:ratio", series=3 * len(MODELS))
        finally:
            monitored.load.stop.set()
            thread.join()
        monitored.load.burst()
        # what was counted before the load ended has been scraped once a later scrape is in
        wait_for(monitored, f"timestamp(up) > {time.time() + 1}", series=1)
        yield monitored


def wait_for(monitored: Monitored, expression: str, *, series: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):  # not listening or not ready yet
            if len(monitored.ask(expression)) >= series:
                return
        time.sleep(0.1)
    raise AssertionError(f"{expression} did not have {series} series within {PATIENCE_S} s")


def present(expression: str, model: str) -> str:
    """The expression as Grafana sends it with `model` chosen (or all of them: a pattern)."""
    return expression.replace("$model", model).replace("$__rate_interval", "1m")


@pytest.mark.parametrize("expression", PANELS.values(), ids=PANELS.keys())
def test_every_panel_has_data(monitored: Monitored, expression: str) -> None:
    repeated = 'model="$model"' in expression
    for model in MODELS if repeated else (".*",):
        found = monitored.ask(present(expression, model))
        assert found, f"no data for {present(expression, model)}"
        assert all(math.isfinite(value) for _, value in found), found


@pytest.mark.parametrize("expression", RECORDED.values(), ids=RECORDED.keys())
def test_every_rule_has_data(monitored: Monitored, expression: str) -> None:
    found = monitored.ask(expression)
    assert all(math.isfinite(value) for _, value in found), found
    if "by (status)" in expression:
        assert {labels["status"] for labels, rate in found if rate} == {"200", "404", "422", "503"}
    else:
        assert {labels["model"] for labels, _ in found} == set(MODELS)


def test_every_rule_is_evaluated_without_an_error(monitored: Monitored) -> None:
    document = httpx.get(f"{monitored.prometheus}/api/v1/rules", timeout=10).json()
    assert isinstance(document, dict)
    rules = [rule for group in document["data"]["groups"] for rule in group["rules"]]
    assert len(rules) == len(RULES)
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []


def test_the_dashboards_variable_offers_every_model(monitored: Monitored) -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
    assert asked
    document = httpx.get(
        f"{monitored.prometheus}/api/v1/label/{asked[2]}/values?match[]={asked[1]}", timeout=10
    ).json()
    assert isinstance(document, dict)
    assert set(document["data"]) == set(MODELS)


def test_prometheus_counts_what_the_client_counted(monitored: Monitored) -> None:
    """The counts of both API processes are included, once."""
    counted = monitored.ask("sum by (model, status) (distillery_requests_total) > 0")
    assert {(labels.get("model", ""), int(labels["status"])): n for labels, n in counted} == dict(
        monitored.load.answers
    )
    images = monitored.ask("sum by (model) (distillery_images_total)")
    assert {labels["model"]: n for labels, n in images} == dict(monitored.load.images)
    assert monitored.ask("sum(distillery_predictions_total)")[0][1] == monitored.load.images.total()
    assert monitored.ask("sum(distillery_batch_size_images_sum)")[0][1] == monitored.load.images.total()
    assert monitored.ask("sum(distillery_requests_in_flight)")[0][1] == 0


def test_a_burst_of_errors_between_two_scrapes_has_a_rate(monitored: Monitored) -> None:
    """Prometheus takes the first value of a series that appears for no increase; all series exist from the start."""
    burst = monitored.load.answers["teacher", 503]
    assert burst >= BURST - 2 * MAX_IN_FLIGHT
    ((_, increase),) = monitored.ask('sum(increase(distillery_requests_total{status="503"}[5m]))')
    assert increase == pytest.approx(burst, rel=0.2)  # extrapolated to the ends of the window
    ((labels, ratio),) = monitored.ask("model:distillery_server_errors:ratio_rate5m > 0")
    assert labels["model"] == "teacher"
    assert ratio < 1


def test_the_speedup_is_the_ratio_of_the_measured_times(monitored: Monitored) -> None:
    """Every model received the same images, so the ratios of time per image and of total time are equal."""
    in_all = "sum by (model) (increase(distillery_inference_duration_seconds_sum[1m]))"
    seconds = {labels["model"]: value for labels, value in monitored.ask(in_all)}
    measure = '{measure="inference per image"}'
    speedups = monitored.ask(f"model:distillery_speedup_over_teacher:ratio{measure}")
    found = {labels["model"]: value for labels, value in speedups}
    assert found["teacher"] == 1
    for model in MODELS:  # scrapes fall between requests, the more so on a busy machine
        assert found[model] == pytest.approx(seconds["teacher"] / seconds[model], rel=0.3)


def test_promtool_accepts_the_metrics(monitored: Monitored) -> None:
    connection = http.client.HTTPConnection(urlsplit(monitored.service).netloc, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        text = connection.getresponse().read()
    run = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()
