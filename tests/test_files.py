"""Files are complete or absent, whatever ends the process that writes them; errors name the folder and the fix."""

import errno
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from distillery.files import FileError, make_folder, require_writable, write_atomically
from tests.support.faults.crash import kill_at

ROOT = Path(__file__).parent.parent
OLD, NEW = b"old" * 1000, b"new content" * 1000


def end_of(work: Callable[[], object]) -> int:
    """Run `work` in a process of its own and return its exit status; minus the signal that ended it."""
    if not (pid := os.fork()):
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def crash_everywhere(folder: Path) -> None:
    """Replace a file and write a new one in new folders, killed at every change; raise `AssertionError` for a loss."""
    for change in count(1):
        root = folder / str(change)
        old, new = root / "file", root / "a" / "b" / "new"
        root.mkdir()
        old.write_bytes(OLD)

        def write(root: Path = root, old: Path = old, new: Path = new, change: int = change) -> None:
            kill_at(change, root)
            write_atomically(old, NEW)
            write_atomically(new, NEW)

        status = end_of(write)
        assert old.read_bytes() in {OLD, NEW}
        assert not new.exists() or new.read_bytes() == NEW
        write_atomically(old, NEW)
        write_atomically(new, NEW)
        assert [path.name for path in root.rglob("*") if path.is_file()] == ["file", "new"]
        if status == 0:
            print(change)
            return
        assert status == -signal.SIGKILL


def test_a_file_is_old_or_new_after_a_kill_at_any_change_and_nothing_else_is_left(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.test_files", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    # Per file: opened, flushed, renamed, and its folder flushed; two folders created, their names flushed.
    assert int(done.stdout) == 1 + 2 * 4 + 2 * 2


def test_temporary_files_of_processes_that_live_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_another(descriptor: int) -> None:  # while the first one is flushed
        monkeypatch.undo()
        write_atomically(tmp_path / "another", NEW)
        os.fsync(descriptor)

    monkeypatch.setattr(os, "fsync", write_another)
    write_atomically(tmp_path / "file", NEW)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": NEW, "another": NEW}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_other_users_can_read_files_as_far_as_the_umask_allows(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "folder" / "file", b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "folder" / "file").stat().st_mode & 0o777 == mode


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(OLD)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(
            FileError, match=rf"{tmp_path} cannot be written: File too large; raise .*ulimit -f"
        ):
            write_atomically(file, NEW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == OLD
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "No space left on device; make space there, then run the same command to continue"),
        (errno.EROFS, "Read-only file system; make it writable for this user, or choose another folder"),
        (errno.EACCES, "Permission denied; make it writable for this user, or choose another folder"),
        (errno.EIO, "Input/output error; choose another folder"),
    ],
)
def test_an_error_names_the_folder_and_the_fix(
    number: int, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FileError) as caught:
        write_atomically(tmp_path / "file", NEW)
    assert str(caught.value) == f"{tmp_path} cannot be written: {fix}"


@pytest.mark.parametrize(
    "work", [make_folder, require_writable, lambda folder: write_atomically(folder / "x", b"")]
)
def test_a_file_in_the_place_of_a_folder_is_named(work: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=f"{tmp_path}/file is a file, expected a folder"):
        work(tmp_path / "file" / "below" / "it")


def test_a_folder_that_can_be_written_stays_empty(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


SCRATCH = {
    "benchmarks/cluster/balancers.py",
    "benchmarks/cluster/quota.py",
    "benchmarks/cluster/ray_engines.py",
    "benchmarks/cluster/replay.py",
    "benchmarks/commands/overload.py",
    "benchmarks/commands/pareto.py",
    "benchmarks/commands/switches.py",
    "benchmarks/load/checked.py",
    "benchmarks/load/open_loop.py",
    "benchmarks/load/run.py",
    "benchmarks/systems/candidates.py",
    "benchmarks/systems/soak.py",
    "benchmarks/training/notebook_loop.py",
    "serving/health.py",
    "serving/ray/haproxy.py",
    "serving/release/trial.py",
    "training/runs/lock.py",
}
"""Modules that write to temporary folders, control groups or /proc, or the name of the process that holds a lock."""


def test_files_that_outlive_a_command_are_written_atomically() -> None:
    packages = ("benchmarks", "distillery", "export", "serving", "training")
    modules = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    direct = {
        str(path.relative_to(ROOT))
        for path in modules
        if re.search(r"\.write_(text|bytes)\(|\.savefig\(path", path.read_text(encoding="utf-8"))
    }
    assert direct == SCRATCH


if __name__ == "__main__":
    crash_everywhere(Path(sys.argv[1]))
