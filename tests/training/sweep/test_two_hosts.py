"""A sweep of two hosts with a PostgreSQL on a third one: every host is a network namespace, every process real."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from benchmarks.cluster.hosts import Host, network
from tests.support.postgres import PASSWORD, Postgres, postgres
from tests.support.root import needs_root
from tests.support.service import eventually
from tests.training.conftest import call
from tests.training.sweep.test_sweep import SCRIPT, rows
from training.model.checkpoint import load_tensors
from training.runs.folder import RunError, read_history
from training.sweep.storage import open_study

RECIPE = """
[teacher]
hidden = [32]
epochs = 2
batch_size = 50
learning_rate = 0.01

[student]
hidden = [48, 8]
epochs = 20
batch_size = 25
learning_rate = 0.009
control = false

[student.distillation]
temperature = 4
"""
TRIALS = 4
SECONDS = 90
"""Limit of every wait; the machine may be busy."""
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), needs_root]


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    with network("database", "one", "two") as found:
        yield found


@pytest.fixture(scope="module")
def database(hosts: list[Host]) -> Iterator[Postgres]:
    with postgres(hosts[0]) as server:
        yield server


@pytest.fixture(autouse=True)
def small(mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    """The recipe small.toml next to the sample digits, as the default recipe."""
    (tmp_path / "small.toml").write_text(RECIPE)
    monkeypatch.setenv("DISTILLERY_RECIPE", str(tmp_path / "small.toml"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@contextmanager
def worker(host: Host, mnist: Path, url: str, out: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a sweep on `host`, whose output goes to the files `output` and `errors` in `out`."""
    out.mkdir()
    command = [sys.executable, "-u", str(SCRIPT), str(mnist), "sweep", f"--trials={TRIALS}", "--heartbeat=1"]
    environment = os.environ | {"DISTILLERY_STORAGE": url, "DISTILLERY_OUT": str(out)}
    with (out / "output").open("wb") as output, (out / "errors").open("wb") as errors:
        with host.entered():
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=errors)
        with process:
            try:
                yield process
            finally:
                process.kill()


def in_the_middle_of_a_trial(out: Path) -> bool:
    """Return whether the worker is training a student."""
    for folder in (out / "small").glob("student-*"):
        try:
            if 2 <= len(read_history(folder)) < 16 and not (folder / "model.safetensors").exists():
                return True
        except RunError:
            continue
    return False


def trained(*outs: Path) -> dict[str, Path]:
    """Return the folders of all finished students, by their names, which are hashes of their settings."""
    found = [file.parent for out in outs for file in out.glob("small/student-*/model.safetensors")]
    return {folder.name: folder for folder in found}


def trials(database: Postgres, name: str) -> list[dict[str, Any]]:
    """Return the state and the settings of every trial, in the order of their numbers."""
    with database.connected(name) as connection:
        found = connection.execute(
            "SELECT state, json_object_agg(param_name, param_value) FROM trials "
            "LEFT JOIN trial_params USING (trial_id) GROUP BY trial_id ORDER BY number"
        ).fetchall()
    return [{"state": state, "settings": settings} for state, settings in found]


def test_a_killed_worker_and_an_outage_of_the_database_lose_no_trial(
    hosts: list[Host], database: Postgres, mnist: Path, tmp_path: Path
) -> None:
    """Both workers start at the same moment, with a database without tables."""
    url, one, two = database.create("sweep"), tmp_path / "one", tmp_path / "two"
    with ExitStack() as stack:
        first = stack.enter_context(worker(hosts[1], mnist, url, one))
        second = stack.enter_context(worker(hosts[2], mnist, url, two))

        def stopped_in_the_middle() -> bool:
            assert first.poll() is second.poll() is None, (one / "errors").read_text()
            if not in_the_middle_of_a_trial(one) or not list(two.glob("small/student-*")):
                return False
            first.send_signal(signal.SIGSTOP)
            if in_the_middle_of_a_trial(one):
                return True
            first.send_signal(signal.SIGCONT)
            return False

        eventually(stopped_in_the_middle, seconds=SECONDS)
        finished_by_first = trained(one)
        first.kill()
        assert first.wait() == -signal.SIGKILL
        database.stop()
        eventually(lambda: "trying again" in (two / "errors").read_text(), seconds=SECONDS)
        database.start()
        assert second.wait(SECONDS) == 0, (two / "errors").read_text()

    found = trials(database, "sweep")
    states = [trial["state"] for trial in found]
    assert states.count("COMPLETE") == TRIALS
    assert set(states) == {"COMPLETE", "FAIL"}
    (killed,) = [trial["settings"] for trial in found if trial["state"] == "FAIL"]
    assert killed in [trial["settings"] for trial in found if trial["state"] == "COMPLETE"]
    finished = rows(two)
    assert len(finished) == TRIALS
    assert not finished_by_first.keys() & trained(two).keys()
    assert len(trained(one, two)) == TRIALS  # each trained by one of them, once
    for line in (two / "output").read_text().splitlines():
        if line.startswith("fewest errors: "):
            command = line.partition("distillery-train ")[2].split()
    assert call(*command, f"--out={tmp_path / 'alone'}") == 0
    ((name, folder),) = trained(tmp_path / "alone").items()
    expected, metadata = load_tensors(folder / "model.safetensors")
    theirs, _ = load_tensors(trained(one, two)[name] / "model.safetensors")
    assert all((theirs[key] == expected[key]).all() for key in expected)
    assert metadata["validation_errors"] == min(int(row["validation_errors"]) for row in finished)
    for file in (file for out in (one, two) for file in out.rglob("*") if file.is_file()):
        assert PASSWORD.encode() not in file.read_bytes(), file
    assert json.loads((two / "small/sweep/student/sweep.json").read_bytes())["trials"] == TRIALS


@pytest.mark.filterwarnings("ignore")  # warnings are suppressed for a process, not for a thread
def test_processes_that_open_an_empty_database_at_the_same_moment_share_one_study(
    hosts: list[Host], database: Postgres
) -> None:
    together = 6
    url, barrier = database.create("empty"), Barrier(together)

    def start(number: int) -> int:
        with hosts[1 + number % 2].entered():
            barrier.wait(SECONDS)
            shared = open_study(url, "study", heartbeat=30)
            found = shared.storage.get_study_id_from_name("study")
            shared.storage.engine.dispose()
            return found

    with ThreadPoolExecutor(together) as pool:
        assert len(set(pool.map(start, range(together)))) == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://sweeper:{secret}@10.77.0.1/missing", 'database "missing" does not exist; create it: createdb'),
        ("postgresql://sweeper:wrong-{secret}@10.77.0.1/postgres", "password authentication failed for user"),
        ("postgresql://sweeper@10.77.0.1/postgres", "no password supplied; give the password in the URL"),
        ("postgresql://sweeper:{secret}@10.77.0.1:5433/postgres", "Connection refused"),
        ("postgresql://sweeper:{secret}@10.77.0.9/postgres?connect_timeout=1", "connection timeout expired"),
    ],
)  # fmt: skip
def test_an_unusable_database_is_reported_without_its_password(
    url: str, message: str, hosts: list[Host], database: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    assert database.process
    with hosts[1].entered():
        assert call("sweep", "--storage", url.format(secret=PASSWORD)) == 1
    error = capsys.readouterr().err
    assert error.startswith("distillery-train sweep: --storage postgresql://sweeper")
    assert message in error
    assert PASSWORD not in error
