"""Whatever ends a run, the same command completes it: every item once, finished parts untouched."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from fcntl import LOCK_EX, flock
from itertools import count
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest

from serving.model.tensors import Images
from tests.support.forkserver import ForkServer
from tests.support.scoring import Score, files, rows
from tests.support.service import ROOT, eventually, is_alive


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    no_thread = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}  # of Arrow's allocator
    with ForkServer.start("serving.scoring.run", "rich.progress", **no_thread) as server:
        yield server


@pytest.fixture
def inputs(digits: Images, pictures: list[bytes], tmp_path: Path) -> list[Path]:
    """An array in two parts and pictures in one, with one that is set aside; parts have 120 items."""
    np.save(tmp_path / "digits.npy", digits)
    (tmp_path / "pictures").mkdir()
    for number, content in enumerate([*pictures[:3], b"no picture"]):
        (tmp_path / f"pictures/{number}.png").write_bytes(content)
    return [tmp_path / "digits.npy", tmp_path / "pictures"]


def test_killed_at_one_change_of_a_file_after_another_a_run_ends_as_undisturbed(
    inputs: list[Path], server: ForkServer, score: Score, one_model: Path, tmp_path: Path
) -> None:
    """In one folder: the n-th start continues what those before it have left, and is killed at its n-th change."""
    flags = ["--part-items", 120, "--out"]
    assert score(*inputs, *flags, tmp_path / "undisturbed") == 0
    folder = tmp_path / "killed"
    place = ["--models-dir", one_model, "--processes", 0, *flags, folder]
    for start in count(1):
        command = server.run("distillery-score", *inputs, *map(str, place), kill=(start, folder))
        if command.wait() == 0:
            break
        assert command.returncode == -signal.SIGKILL, command.errors
        rows(folder)  # every file is whole
    assert start > 8
    assert files(folder) == files(tmp_path / "undisturbed")
    assert [path.name for path in folder.rglob(".*")] == [".lock"]


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGKILL, -signal.SIGKILL),
        pytest.param(signal.SIGTERM, -signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_after_a_signal_processes_end_and_the_same_command_scores_every_item_once(
    number: signal.Signals, status: int, digits: Images, score: Score, one_model: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "digits.npy", np.tile(digits, (20, 1, 1)))
    out = tmp_path / "out"
    arguments = [str(tmp_path / "digits.npy"), "--part-items", "20", "--out"]
    command = [sys.executable, "-m", "serving.scoring", *arguments, str(out), "--processes", "2"]
    command += ["--models-dir", str(one_model)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        eventually(lambda: len(list(out.glob("predictions/*"))) >= 5, 60)
        children = [
            int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ]
        process.send_signal(number)
    assert process.returncode == status
    assert len(children) >= 2
    eventually(lambda: not any(map(is_alive, children)))
    finished = {
        path: path.stat().st_ino for path in (out / "predictions").iterdir() if path.suffix == ".parquet"
    }
    assert 5 <= len(finished) < 200
    assert score(*arguments, out) == 0
    assert [row["index"] for row in rows(out)] == list(range(4000))
    assert {path: path.stat().st_ino for path in finished} == finished
    if number == signal.SIGKILL:
        assert score(*arguments, tmp_path / "undisturbed") == 0
        assert files(out) == files(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_process_that_dies_is_replaced_and_its_part_is_named_and_scored_by_the_next_run(
    digits: Images, score: Score, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    np.save(tmp_path / "digits.npy", np.tile(digits, (40, 1, 1)))
    arguments = [tmp_path / "digits.npy", "--out", tmp_path / "out", "--part-items", 50]
    killed = []

    def kill_one() -> None:
        eventually(lambda: len(list((tmp_path / "out").glob("predictions/*"))) > 5, 60)
        killed.extend(child.pid for child in active_children()[:1])
        os.kill(killed[0] or 0, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    assert score(*arguments, "--processes", 2) == 1
    killer.join()
    assert "its process ended with status -9" in capsys.readouterr().err
    assert len(files(tmp_path / "out")) >= 158
    assert score(*arguments) == 0
    assert [row["index"] for row in rows(tmp_path / "out")] == list(range(8000))


@pytest.mark.slow
def test_a_file_that_crashes_its_reader_does_not_end_the_run(
    digits: Images, score: Score, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Size statistics that contradict the schema end the process in pyarrow 26.0.1; others may raise an error."""
    crashing = ROOT / "tests/data/contradicting.parquet"
    np.save(tmp_path / "digits.npy", digits)
    assert score(crashing, tmp_path / "digits.npy", "--out", tmp_path / "out", "--processes", 1) == 1
    assert f"{crashing}" in capsys.readouterr().err
    assert [row["index"] for row in rows(tmp_path / "out")] == list(range(200))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--part-items", "50"], "has results with part_items 120, this run has 50; choose another folder"),
        (
            ["--max-pixels", "1000"],
            "has results with max_pixels 16000000, this run has 1000; choose another folder",
        ),
    ],
)
def test_results_of_other_settings_are_refused(
    change: list[str],
    message: str,
    inputs: list[Path],
    score: Score,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    flags = ["--out", tmp_path / "out", "--part-items", 120]
    assert score(*inputs, *flags) == 0
    before = files(tmp_path / "out")
    assert score(*inputs, *flags, *change) == 1
    assert message in capsys.readouterr().err
    assert files(tmp_path / "out") == before


def test_results_of_another_model_or_of_a_changed_input_are_refused(
    inputs: list[Path],
    score: Score,
    model_repository: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    flags = ["--out", tmp_path / "out"]
    assert score(*inputs, *flags) == 0
    assert score(*inputs, *flags, "--models-dir", model_repository, "--model", "teacher") == 1
    assert (
        "has results with model student, this run has teacher; choose another folder"
        in capsys.readouterr().err
    )
    (tmp_path / "pictures/0.png").write_bytes(b"")
    assert score(*inputs, *flags) == 1
    assert (
        f"{tmp_path / 'pictures'} has changed since {tmp_path / 'out'} was begun" in capsys.readouterr().err
    )


def test_a_foreign_file_in_the_place_of_a_part_and_a_folder_with_other_files_are_refused(
    inputs: list[Path], score: Score, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert score(*inputs, "--out", tmp_path / "out", "--part-items", 120) == 0
    first, second = sorted((tmp_path / "out/predictions").glob("digits*"))
    first.write_bytes(second.read_bytes())
    assert score(*inputs, "--out", tmp_path / "out", "--part-items", 120) == 1
    assert f"{first} has first 120, expected 0: it is of another run; remove it" in capsys.readouterr().err
    first.unlink()
    assert score(*inputs, "--out", tmp_path / "out", "--part-items", 120) == 0
    assert score(*inputs, "--out", tmp_path / "pictures") == 1
    assert "has files, but no run.json of an earlier run; choose a new folder" in capsys.readouterr().err


def test_inputs_can_be_added_and_are_scored_once(inputs: list[Path], score: Score, tmp_path: Path) -> None:
    for paths in (inputs[:1], inputs, [*inputs, inputs[0]]):
        assert score(*paths, "--out", tmp_path / "out") == 0
    assert len(rows(tmp_path / "out")) == 203


def test_two_commands_cannot_write_to_one_folder(
    inputs: list[Path], score: Score, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out/.lock").open("ab") as file:
        flock(file, LOCK_EX)
        assert score(*inputs, "--out", tmp_path / "out") == 1
    assert "another command is writing to" in capsys.readouterr().err
