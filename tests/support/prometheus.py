"""Run Prometheus and Alertmanager with the configuration of `docker`, at another speed and other addresses."""

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml

from tests.monitoring.description import DOCKER, PROMETHEUS, module
from tests.support.service import PATIENCE_S, free_port

INTERVAL = "500ms"
"""Of scrapes and evaluations."""


class Prometheus:
    """A Prometheus and its HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of a response of the API."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10)
        document = answer.raise_for_status().json()
        assert isinstance(document, dict)
        return document["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return the present value of an expression: labels and number of each series."""
        data = self.get("query", query=expression)
        assert data["resultType"] == "vector", data["resultType"]
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]


class Notifications:
    """What Alertmanager sends to its receiver: name (and window, if it has one) and status of each alert."""

    def __init__(self) -> None:
        self.received: list[tuple[str, str]] = []
        received = self.received

        class Receiver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for one in body["alerts"]:
                    name = f"{one['labels']['alertname']} {one['labels'].get('window', '')}".strip()
                    received.append((name, one["status"]))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Receiver)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> "Notifications":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextlib.contextmanager
def _running(folder: Path, *command: str) -> Iterator[None]:
    with (folder / f"{command[0]}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@contextlib.contextmanager
def running_prometheus(
    services: Sequence[str], folder: Path, *, faster: float = 1, alertmanager: str = ""
) -> Iterator[Prometheus]:
    """Run Prometheus; all windows of the rules are shorter by the factor `faster`."""
    configuration = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL}
    (job,) = configuration["scrape_configs"]
    job["static_configs"][0]["targets"] = [urlsplit(service).netloc for service in services]
    job["scrape_timeout"] = INTERVAL
    configuration["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [
        alertmanager or "127.0.0.1:1"
    ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    rules = (PROMETHEUS / "rules.yml").read_text()
    (folder / "rules.yml").write_text(rules if faster == 1 else module("rules").scaled(rules, faster))
    address = f"127.0.0.1:{free_port()}"
    with _running(
        folder,
        "prometheus",
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        "--enable-feature=exemplar-storage",
        f"--web.listen-address={address}",
        "--rules.alert.resend-delay=1s",
    ):
        yield Prometheus(f"http://{address}")


@contextlib.contextmanager
def running_alertmanager(folder: Path, receiver: str) -> Iterator[str]:
    """Run Alertmanager, which sends notifications to a URL at once; yield its address."""
    configuration = yaml.safe_load((DOCKER / "alertmanager/alertmanager.yml").read_text())
    configuration["route"] |= {"group_wait": "100ms", "group_interval": "500ms"}
    (nobody,) = configuration["receivers"]
    nobody["webhook_configs"] = [{"url": receiver, "send_resolved": True}]
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(configuration))
    address = f"127.0.0.1:{free_port()}"
    with _running(
        folder,
        "prometheus-alertmanager",
        "--config.file=alertmanager.yml",
        "--storage.path=alerts",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    ):
        yield address
