"""Folders that are full, read-only or in use, and output that nobody takes: one line with the fix, and nothing lost."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.support.faults.command_cases import Case, check_files, resume
from tests.support.forkserver import Forked, ForkServer
from tests.support.service import eventually
from training.runs.lock import locked

NAMES = ("train", "export", "sweep", "benchmark")
MAKE_SPACE = "make space there, then run the same command to continue"
MAKE_WRITABLE = "make it writable for this user, or choose another folder"
PAGE = 4096
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def the_error(command: Forked, status: int = 1) -> str:
    """Wait for a command that fails and return the one line that it prints."""
    assert command.wait() == status, command.errors
    lines = [line for line in command.errors.splitlines() if line and "the machine is busy" not in line]
    assert len(lines) == 1, command.errors
    return lines[0]


def path_of(error: str) -> str:
    """The folder or database that an error names."""
    return next(word.removeprefix("sqlite:///") for word in error.split() if "/" in word).rstrip(":")


@pytest.fixture
def disk(server: ForkServer, tmp_path: Path) -> Iterator[Path]:
    """An empty file system at `tmp_path`, as the commands see it; returns its path as the test sees it."""
    if not server.own_mounts:
        pytest.skip("this machine allows no mount namespaces")
    server.shell('mount -t tmpfs -o size=64m none "$1"', tmp_path)
    yield Path(f"/proc/{server.process.pid}/root{tmp_path}")
    server.shell('umount "$1"', tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_one_line_and_the_next_start_resumes(
    name: str, cases: dict[str, Case], server: ForkServer, disk: Path, tmp_path: Path
) -> None:
    """Full from the beginning, and when half of what the command writes is written."""
    case = cases[name]
    needed = sum(-(-path.stat().st_size // PAGE) for path in case.made.rglob("*") if path.is_file())
    for pages, filled in ((1, 1), (needed // 2, 0))[: 1 if name == "benchmark" else 2]:  # it writes one file
        server.shell('mount -o remount,size="$2" "$1"', tmp_path, pages * PAGE)
        server.shell('head -c "$2" /dev/zero > "$1/filled"', tmp_path, filled * PAGE)
        error = the_error(case.start(server, tmp_path / "out"))
        assert error.endswith(MAKE_SPACE)
        assert path_of(error).startswith(str(tmp_path))
        if (disk / "out").exists():
            check_files(disk / "out")
    server.shell('mount -o remount,size=64m "$1"', tmp_path)
    resume(case, server, tmp_path / "out", disk / "out")


@pytest.mark.parametrize("name", NAMES)
def test_a_read_only_folder_is_one_line_before_any_work(
    name: str, cases: dict[str, Case], server: ForkServer, disk: Path, tmp_path: Path
) -> None:
    server.shell('mount -o remount,ro "$1"', tmp_path)
    command = cases[name].start(server, tmp_path / "out")
    error = the_error(command)
    assert f": {tmp_path}/out" in error
    assert error.endswith(f" cannot be written: Read-only file system; {MAKE_WRITABLE}")
    assert command.output == ""
    assert list(disk.iterdir()) == []


def test_a_finished_run_can_be_read_in_a_read_only_folder(
    cases: dict[str, Case], server: ForkServer, disk: Path, tmp_path: Path
) -> None:
    """Its export leaves what is current as it is."""
    shutil.copytree(cases["export"].made, disk / "models")
    server.shell('mount -o remount,ro "$1"', tmp_path)
    command = cases["export"].start(server, tmp_path / "models")
    assert command.wait() == 0, command.errors
    assert "unchanged  student, student-int8" in command.output


@pytest.mark.parametrize(
    ("name", "mode"), [("train", 0o555), ("export", 0o666), ("sweep", 0o000), ("benchmark", 0o555)]
)
def test_a_folder_without_permissions_is_one_line_before_any_work(
    name: str, mode: int, cases: dict[str, Case], server: ForkServer, tmp_path: Path
) -> None:
    """A folder that cannot be written, entered, or either."""
    if os.geteuid() == 0 and not server.own_mounts:
        pytest.skip("this machine gives root all permissions")
    (tmp_path / "out").mkdir(mode=mode)
    command = cases[name].start(server, tmp_path / "out")
    error = the_error(command)
    assert f": {tmp_path}/out" in error
    assert error.endswith(f" cannot be written: Permission denied; {MAKE_WRITABLE}")
    assert command.output == ""
    (tmp_path / "out").chmod(0o755)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_in_the_place_of_the_folder_is_one_line_before_any_work(
    name: str, cases: dict[str, Case], server: ForkServer, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    command = cases[name].start(server, tmp_path / "file" / "out")
    assert the_error(command).endswith(f"{tmp_path}/file is a file, expected a folder; choose another one")
    assert command.output == ""
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_command_says_so_in_one_line_and_resumes(
    name: str, cases: dict[str, Case], server: ForkServer, tmp_path: Path
) -> None:
    case = cases[name]
    for attempt in count(1):  # a busy machine may have delayed the run that was measured
        folder = tmp_path / str(attempt)
        command = case.start(server, folder)
        time.sleep(case.seconds / 2**attempt)
        os.killpg(command.pid, signal.SIGINT)
        if command.wait():
            break
    assert command.errors.splitlines()[-1].endswith(": interrupted; run the same command to continue")
    assert "Traceback" not in command.errors
    resume(case, server, folder)


@pytest.mark.parametrize("name", NAMES)
def test_output_that_cannot_be_written_is_one_line(
    name: str, cases: dict[str, Case], server: ForkServer, tmp_path: Path
) -> None:
    command = cases[name].start(server, tmp_path, output=Path("/dev/full"))
    expected = (
        f"{cases[name].program}: the output cannot be written: No space left on device; redirect it elsewhere"
    )
    assert the_error(command) == expected
    check_files(tmp_path)


@pytest.mark.parametrize("name", ["train", "export"])
def test_a_reader_that_has_gone_is_no_error(
    name: str, cases: dict[str, Case], server: ForkServer, tmp_path: Path
) -> None:
    """`distillery-train | head -1`: the command ends, quietly, when it prints more."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    command = cases[name].start(server, tmp_path / "out", output=tmp_path / "pipe")
    eventually(lambda: Path(f"/proc/{command.pid}/fd/1").readlink().name == "pipe")
    os.close(reader)
    assert command.wait() == 141
    assert command.errors == ""


def test_a_second_training_names_the_first_one_and_ends(
    cases: dict[str, Case], server: ForkServer, tmp_path: Path
) -> None:
    with locked(tmp_path / "small"):
        error = the_error(cases["train"].start(server, tmp_path))
    assert f"another command is using {tmp_path}/small: process {os.getpid()} on " in error
    assert error.endswith("; wait for it, or choose another folder")


@pytest.mark.parametrize("name", ["train", "export"])
def test_a_command_that_waits_for_another_one_names_it(
    name: str, cases: dict[str, Case], server: ForkServer, tmp_path: Path
) -> None:
    """For a model that a sweep is training, and for a repository that another export is writing."""
    case, folder = cases[name], tmp_path
    if name == "train":
        folder /= (case.made / "small" / "teacher").readlink()
        folder = tmp_path / "small" / folder.name
    with locked(folder):
        command = case.start(server, tmp_path)
        eventually(lambda: "waiting" in command.errors, 120)
        assert command.errors
        assert f"waiting for process {os.getpid()} on " in command.errors
        assert command.errors.endswith(f", which is using {folder}\n")
    assert command.wait() == 0
    assert case.result(tmp_path) == case.expected
