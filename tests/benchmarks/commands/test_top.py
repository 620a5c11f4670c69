"""`distillery-bench top`: the state of a real service from its metrics, once and in a terminal."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.__main__ import COMMANDS
from benchmarks.errors import BenchmarkError
from benchmarks.monitor.scrape import Growth, Scrape
from benchmarks.monitor.state import state_of
from distillery import main
from tests.support.certificates import Authority
from tests.support.service import API_KEY, PATIENCE_S, ROOT, Service, running_service
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.tolist()


def top(*arguments: str) -> int:
    return main("distillery-bench", COMMANDS, arguments=["top", *arguments])


def state_during(url: str, capsys: pytest.CaptureFixture[str], requests: int) -> dict[str, Any]:
    """The state that the command prints while the service receives requests for student and teacher."""

    def send() -> None:
        time.sleep(0.3)  # published ten times a second, so none of them is in the first look
        with httpx.Client(base_url=url, timeout=10) as client:
            for number in range(requests):
                for model in ("student", "teacher"):
                    client.post(f"/predict/{model}", json={"images": DIGITS[number : number + 2]})
            client.post("/predict/student", json={"image": [1]})

    sender = threading.Thread(target=send)
    sender.start()
    assert top("--as-json", "--interval", "2.5", "--url", url) == 0
    sender.join()
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_the_state_is_that_of_the_interval(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    state = state_during(service.url, capsys, requests=20)
    seconds, student, teacher = state["seconds"], state["models"]["student"], state["models"]["teacher"]
    assert round(student["requests_per_s"] * seconds) == 21
    assert round(teacher["requests_per_s"] * seconds) == 20
    assert round(student["images_per_s"] * seconds) == 40
    assert student["errors"] == 0
    assert {status: round(rate * seconds) for status, rate in state["statuses"].items()} == {
        "200": 40,
        "422": 1,
    }
    assert {reason: round(rate * seconds) for reason, rate in state["rejections"].items()} == {
        "invalid_shape": 1
    }
    for model in (student, teacher):
        assert 0 < model["inference_s"] < 1
        assert 0 < model["cpu_s"] < 1
        assert 0 < model["p50_s"] <= model["p99_s"] < 5
        assert model["batch_images"] >= 2
        assert 0 <= model["accepted"] <= 1
    for quantity, speedup in student["speedup"].items():
        assert speedup == pytest.approx(teacher[quantity] / student[quantity])
    assert (state["processes"]["api"], state["restarts"]) == (2, 0)
    assert 0 < state["cpu_cores"] < 8
    assert state["memory_bytes"] > 40e6
    assert state["in_flight_limit"] == 2048
    assert state["models"]["student-int8"]["p50_s"] is None


def test_one_look_is_a_table(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert top("--once", "--interval", "0.1", "--url", service.url) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == service.url
    assert any(line.split()[0] == "student-int8" for line in lines if line.split())
    assert not any("\x1b" in line for line in lines)


def test_the_screen_is_updated_until_ctrl_c(service: Service) -> None:
    terminal, inner = pty.openpty()
    command = [sys.executable, "-m", "benchmarks", "top", "--interval", "0.2", "--url", service.url]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "170", "LINES": "30"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=inner, stdout=inner, stderr=inner, start_new_session=True
    )
    os.close(inner)
    shown = b""
    deadline = time.monotonic() + PATIENCE_S
    while shown.count(b"student-int8") < 2:
        assert time.monotonic() < deadline, shown
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 65536)
    process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None:
        assert time.monotonic() < deadline, shown
        with suppress(OSError):  # the other side is closed
            if select.select([terminal], [], [], 0.1)[0]:
                os.read(terminal, 65536)
    os.close(terminal)
    assert process.returncode == 0
    assert b"Traceback" not in shown


def test_a_service_with_tls_and_a_key_is_read(
    one_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    authority.issue()
    flags = ("--api-servers", "1", "--api-key", API_KEY, "--open-routes", "health", *authority.flags)
    with running_service(one_model, *flags) as secure:
        place = ("--as-json", "--interval", "0.1", "--url", secure.url, "--ca-file", str(authority.file))
        assert top(*place) == 1
        assert "status 401, expected 200; --api-key is needed" in capsys.readouterr().err
        monkeypatch.setenv("DISTILLERY_API_KEY", API_KEY)
        assert top(*place) == 0
        assert list(json.loads(capsys.readouterr().out)["models"]) == ["student"]
        assert top("--once", "--url", secure.url) == 1
        assert "no response: " in capsys.readouterr().err


def scrape(text: str, taken: float) -> Scrape:
    return Scrape(taken, Scrape.parse(text).samples)


def test_a_service_that_has_started_anew_counts_from_zero() -> None:
    growth = Growth(
        scrape('distillery_requests_total{model="a"} 100\n', 0),
        scrape('distillery_requests_total{model="a"} 30\n', 10),
    )
    assert growth.rate("requests_total") == 3


def test_a_quantile_is_interpolated_in_its_bucket() -> None:
    buckets = "".join(
        f'distillery_wait_bucket{{le="{bound}"}} {count}\n'
        for bound, count in (("1", 50), ("2", 90), ("+Inf", 100))
    )
    empty = re.sub(r" \d+\n", " 0\n", buckets)
    other = "distillery_requests_total 0\n"
    growth = Growth(scrape(other + empty, 0), scrape(other + buckets, 1))
    assert [growth.quantile("wait", q) for q in (0.25, 0.5, 0.7, 0.99)] == [0.5, 1, 1.5, 2]
    assert Growth(growth.after, growth.after).quantile("wait", 0.5) is None


def test_a_service_of_another_kind_or_age_is_read_or_rejected() -> None:
    with pytest.raises(BenchmarkError, match="no distillery_requests_total: it is that of another service"):
        Scrape.parse("python_info 1\n")
    with pytest.raises(BenchmarkError, match="not in the Prometheus text format"):
        Scrape.parse("<html>\n")
    old = scrape(
        'distillery_requests_total{model="a",status="200"} 1\ndistillery_model_info{model="a"} 1\n', 0
    )
    state = state_of(Growth(old, Scrape(1, old.samples)))
    assert state.models["a"].requests_per_s == 0
    assert state.lag_p99_s is None
