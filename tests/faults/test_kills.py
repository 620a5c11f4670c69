"""Every command, killed at random moments and at changes of files, loses nothing and ends as undisturbed.

    DISTILLERY_TEST_KILLS=100 pytest -m slow -s tests/faults/test_kills.py

prints the rows of the table in docs/training.md.
"""

import os
import random
import shutil
import signal
import time
from itertools import count
from pathlib import Path

import pytest

from serving.model.repository import load_model
from tests.support.faults.command_cases import Case, check_files, leftovers, resume
from tests.support.forkserver import ForkServer

NAMES = ("train", "export", "sweep", "benchmark")
KILLS = int(os.environ.get("DISTILLERY_TEST_KILLS", "8")) // len(NAMES)
"""Of each command."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 + 60 * KILLS)]


@pytest.mark.parametrize("name", NAMES)
def test_a_command_killed_at_random_moments_resumes_to_the_same_result(
    name: str, cases: dict[str, Case], server: ForkServer, tmp_path: Path
) -> None:
    case, killed, limit = cases[name], 0, cases[name].seconds
    moments = random.Random(name)  # noqa: S311
    while killed < KILLS:
        folder = tmp_path / str(killed)
        command = case.start(server, folder)
        time.sleep(moment := moments.uniform(0, limit))
        os.killpg(command.pid, signal.SIGKILL)
        if command.wait() == -signal.SIGKILL:
            resume(case, server, folder)
            killed, limit = killed + 1, limit * 1.1  # the machine may have become slower
        else:
            limit = moment  # it had ended
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\n| {name} | {killed} | {killed} | 0 |", flush=True)


def test_a_training_killed_at_one_change_of_a_file_after_another_resumes_to_the_same_result(
    cases: dict[str, Case], server: ForkServer, tmp_path: Path
) -> None:
    """In one folder: the n-th start continues what those before it have left, and is killed at its n-th change."""
    case, folder = cases["train"], tmp_path / "train"
    for start in count(1):
        if (status := case.start(server, folder, kill=(start, folder)).wait()) == 0:
            break
        assert status == -signal.SIGKILL
        check_files(folder)
    assert start > 10
    resume(case, server, folder)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_published_model_is_old_or_new_after_a_kill_at_any_change(
    replaced: bool, cases: dict[str, Case], server: ForkServer, tmp_path: Path
) -> None:
    def publish(folder: Path, test_errors: int, kill: int | None = None) -> int:
        place = [f"--source={cases['export'].made / 'student/1'}", f"--models-dir={folder}"]
        killed = (kill, folder) if kill else None
        return server.run("publish", *place, f"--test-errors={test_errors}", kill=killed).wait()

    for change in count(1):
        folder = tmp_path / str(change)
        if replaced:
            assert publish(folder, 1) == 0
        status = publish(folder, 2, kill=change)
        if replaced or (folder / "student").exists():
            check_files(folder)
            assert load_model(folder / "student" / "1").manifest.test_errors in ({1, 2} if replaced else {2})
        assert publish(folder, 2) == 0
        assert load_model(folder / "student" / "1").manifest.test_errors == 2
        assert leftovers(folder) == []
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert change > 20
