"""The request log of real services: what is logged, labels, limits, erasure, full disks and killed processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from distillery.request_log import RequestLogError
from distillery.request_log.files import log_files
from distillery.request_log.read import RequestLog, read_log
from distillery.request_log.schema import REQUESTS
from serving.__main__ import COMMANDS, Serve
from serving.engine.admission.api_keys import hash_of
from tests.support.service import ROOT, Service, eventually, failed_start, running_service
from tests.support.training.samples import sample_test

DIGITS = sample_test()
IMAGES = DIGITS.images.tolist()
NOISE = np.random.default_rng(1).integers(0, 256, (28, 28)).tolist()
FAST = ("--request-log-sample", "1", "--request-log-seconds", "0.2", "--request-log-rate", "10000")


def predict(url: str, *images: Any, model: str = "", **headers: str) -> str:
    path = f"/predict/{model}" if model else "/predict"
    response = httpx.post(f"{url}{path}", json={"images": list(images)}, headers=headers)
    assert response.status_code == 200
    return str(response.headers["X-Request-ID"])


def count_of(service: Service, name: str, label: str = "") -> float:
    lines = httpx.get(f"{service.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name) and label in line)


def log_of(folder: Path, until: Callable[[RequestLog], bool]) -> RequestLog:
    """Return the log once `until` holds."""
    found: list[RequestLog] = []

    def complete() -> bool:
        try:
            found.append(read_log(folder))
        except RequestLogError:
            return False
        return until(found[-1])

    eventually(complete)
    return found[-1]


def test_images_predictions_and_labels_of_all_processes_are_logged(one_model: Path, tmp_path: Path) -> None:
    with running_service(one_model, "--api-servers", "2", "--request-log", str(tmp_path), *FAST) as service:
        ids = [predict(service.url, *IMAGES[start : start + 2]) for start in range(0, 20, 2)]
        label = {"id": ids[3], "index": 1, "digit": 4}
        assert httpx.post(f"{service.url}/feedback", json=label).json()["counted"] == 1
        log = log_of(tmp_path, lambda log: len(log) == 20 and bool((log.labels >= 0).any()))
        eventually(lambda: count_of(service, "distillery_request_log_rows_total") == 21)
        size = sum(
            file.stat().st_size for kind in ("requests", "feedback") for file in log_files(tmp_path, kind)
        )
        assert count_of(service, "distillery_request_log_written_bytes_total") == size
    rows = log.table.to_pylist()
    order = {
        (request_id, index): 2 * number + index for number, request_id in enumerate(ids) for index in (0, 1)
    }
    assert sorted(order[row["id"], row["index"]] for row in rows) == list(range(20))
    for row, image, label_found in zip(rows, log.images, log.labels.tolist(), strict=True):
        number = order[row["id"], row["index"]]
        assert np.array_equal(image, DIGITS.images[number].numpy().reshape(28, 28))
        assert (row["model"], row["version"], row["protocol"], row["images"]) == ("student", "1", "rest", 2)
        assert row["digit"] == int(np.argmax(row["probabilities"]))
        assert row["client"] is None
        assert row["reason"] in {"sample", "unaccepted"}
        assert row["rate"] == 1
        assert label_found == (4 if number == 7 else -1)


def test_the_log_has_the_name_of_a_key_and_no_key(one_model: Path, tmp_path: Path) -> None:
    key, log, file = "key-of-alice", tmp_path / "log", tmp_path / "keys.toml"
    file.write_text(f'[[keys]]\nname = "alice"\nhash = "{hash_of(key)}"\n')
    flags = ("--request-log", str(log), *FAST, "--api-keys", str(file))
    with running_service(one_model, "--api-servers", "1", *flags) as service:
        predict(service.url, IMAGES[0], **{"X-API-Key": key})
    assert read_log(log).table["client"].to_pylist() == ["alice"]
    table = read_log(log).table
    assert key not in str(table.to_pydict())
    assert set(table.column_names) == {*REQUESTS.names, "label"}


def test_what_is_not_accepted_is_always_logged(one_model: Path, tmp_path: Path) -> None:
    flags = ("--request-log", str(tmp_path), *FAST, "--request-log-sample", "0")
    with running_service(one_model, "--api-servers", "1", *flags) as service:
        document = httpx.post(f"{service.url}/predict", json={"images": [*IMAGES[:20], NOISE]}).json()
        expected = [index for index, one in enumerate(document["predictions"]) if not one["accepted"]]
        assert 20 in expected
        log = log_of(tmp_path, bool)
    assert log.table["index"].to_pylist() == expected
    assert set(log.table["reason"].to_pylist()) == {"unaccepted"}
    assert set(log.table["accepted"].to_pylist()) == {False}


def test_what_the_teacher_contradicts_is_logged(model_repository: Path, tmp_path: Path) -> None:
    """Noise is an arbitrary digit to each network."""
    noise = np.random.default_rng(2).integers(0, 256, (60, 28, 28))
    flags = ("--request-log", str(tmp_path), *FAST, "--request-log-sample", "0", "--agreement-samples", "10")
    with running_service(model_repository, "--api-servers", "1", *flags) as service:
        teacher, student = (
            [
                one["digit"]
                for one in httpx.post(
                    f"{service.url}/predict/{name}", json={"images": noise.tolist()}
                ).json()["predictions"]
            ]
            for name in ("teacher", "student")
        )
        contradicted = [number for number in range(60) if teacher[number] != student[number]]
        assert contradicted
        image = noise[contradicted[0]].tolist()

        def differs(log: RequestLog) -> bool:
            predict(service.url, image, model="student")
            return any(found is not None for found in log.table["teacher_digit"].to_pylist())

        log = log_of(tmp_path, differs)
    rows = [row for row in log.table.to_pylist() if row["teacher_digit"] is not None]
    assert {row["teacher_digit"] for row in rows} == {teacher[contradicted[0]]}
    assert {row["digit"] for row in rows} == {student[contradicted[0]]}


def test_rows_over_the_rate_are_dropped_and_counted(one_model: Path, tmp_path: Path) -> None:
    flags = ("--request-log", str(tmp_path), *FAST, "--request-log-rate", "5")
    with running_service(one_model, "--api-servers", "1", *flags) as service:
        predict(service.url, *IMAGES[:100])
        dropped = 'distillery_request_log_dropped_rows_total{reason="rate"}'
        eventually(lambda: count_of(service, dropped) >= 90)
    assert len(read_log(tmp_path)) <= 10


def test_the_last_rows_are_written_when_the_service_ends(one_model: Path, tmp_path: Path) -> None:
    flags = ("--request-log", str(tmp_path), *FAST, "--request-log-seconds", "3600")
    with running_service(one_model, "--api-servers", "2", *flags) as service:
        for image in IMAGES[:10]:
            predict(service.url, image)
        assert not log_files(tmp_path, "requests")
    assert len(read_log(tmp_path)) == 10


def test_a_killed_process_leaves_complete_files(one_model: Path, tmp_path: Path) -> None:
    flags = ("--request-log", str(tmp_path), *FAST, "--request-log-seconds", "0.1")
    with running_service(one_model, "--api-servers", "1", *flags) as service:
        written = 0
        for _ in range(3):
            deadline = time.monotonic() + 1.2  # a process that dies earlier ends the service
            while time.monotonic() < deadline:
                predict(service.url, *IMAGES[:50])
            [process] = service.children()
            os.kill(process, signal.SIGKILL)
            eventually(lambda killed=process: service.children() not in ([], [killed]))  # type: ignore[misc]
            eventually(lambda: _is_ready(service))
            found = len(read_log(tmp_path))
            assert found > written
            written = found


def _is_ready(service: Service) -> bool:
    try:
        return httpx.get(f"{service.url}/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def erase(folder: Path, *ids: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serving", "erase", *ids, "--request-log", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_ids_are_erased_from_files_and_from_the_memory_of_a_running_service(
    one_model: Path, tmp_path: Path
) -> None:
    flags = ("--request-log", str(tmp_path), *FAST, "--request-log-seconds", "8")
    with running_service(one_model, "--api-servers", "1", *flags) as service:
        in_memory = predict(service.url, IMAGES[0])
        predict(service.url, IMAGES[1])
        label = {"id": in_memory, "digit": 7}
        assert httpx.post(f"{service.url}/feedback", json=label).json()["counted"] == 1
        done = erase(tmp_path, in_memory)
        assert (done.returncode, done.stdout) == (1, "")
        assert (
            f"has no row of {in_memory}; rows that a service still holds in memory will not be" in done.stderr
        )
    log = read_log(tmp_path)
    assert len(log) == 1
    assert not (log.labels >= 0).any()
    [written] = log.table["id"].to_pylist()
    done = erase(tmp_path, written, "other")
    assert (done.returncode, done.stdout) == (0, f"1 images and 0 labels erased from {tmp_path}\n")
    assert "has no row of other" in done.stderr
    assert not log_files(tmp_path, "requests")


FULL = """
mount -t tmpfs -o size=64k full "$0"
head -c 1M /dev/zero > "$0/fill" 2> /dev/null || test -s "$0/fill"
exec "$@"
"""
NAMESPACE = ("unshare", "--map-root-user", "--mount", "sh", "-ec")


def can_mount(folder: str = "/mnt") -> bool:
    try:
        return not subprocess.run(
            [*NAMESPACE, FULL, folder, "true"], capture_output=True, check=False
        ).returncode
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="this machine allows no mount namespaces")
def test_a_full_disk_is_reported_and_serving_continues(one_model: Path, tmp_path: Path) -> None:
    flags = ("--api-servers", "1", "--request-log", str(tmp_path), *FAST)
    prefix = (*NAMESPACE, FULL, str(tmp_path))
    with running_service(one_model, *flags, prefix=prefix) as service:
        inside = Path(f"/proc/{service.process.pid}/root{tmp_path}")
        predict(service.url, *IMAGES[:100])
        dropped = 'distillery_request_log_dropped_rows_total{reason="disk"}'
        eventually(lambda: count_of(service, dropped) >= 100)
        (inside / "fill").unlink()
        predict(service.url, *IMAGES[:10])
        eventually(lambda: len(log_files(inside, "requests")) > 0)
        assert len(read_log(inside)) == 10
        errors = service.end()[1]
    assert f"--request-log: {tmp_path} cannot be written: No space left on device; make space there" in errors
    assert "rows are dropped until then, and serving continues" in errors


def test_a_folder_that_cannot_be_written_does_not_prevent_serving(one_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    flags = ("--api-servers", "1", "--request-log", str(tmp_path / "file"), *FAST)
    with running_service(one_model, *flags) as service:
        predict(service.url, IMAGES[0])
        eventually(lambda: count_of(service, 'distillery_request_log_dropped_rows_total{reason="disk"}') == 1)
        errors = service.end()[1]
    assert "file is a file, expected a folder" in errors


def test_a_service_without_pyarrow_names_the_command_that_installs_it(
    one_model: Path, tmp_path: Path
) -> None:
    setup = (
        "import importlib.util as util; find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'pyarrow' else find(name, *rest)"
    )
    message = failed_start(one_model, "--request-log", str(tmp_path), setup=setup, forked=False)
    assert message == "distillery-serve: --request-log needs pyarrow: pip install '.[scoring]'\n"


@pytest.mark.parametrize(
    "flags",
    [
        ("--request-log-sample", "1.1"),
        ("--request-log-sample", "-0.1"),
        ("--request-log-rate", "0"),
        ("--request-log-bytes", "1000"),
        ("--request-log-seconds", "0"),
        ("--feedback-expiry", "0"),
        ("--feedback-requests", "10"),
    ],
)
def test_impossible_settings_are_rejected(flags: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=flags[0][2:].replace("-", "_")):
        Serve.parse(flags)


def test_erasing_needs_the_folder() -> None:
    with pytest.raises(ValueError, match="request_log"):
        COMMANDS["erase"].parse(["some-id"])
