"""Files of a request log: complete, bounded, and without the ids that were erased."""

import fcntl
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distillery.request_log import RequestLogError
from distillery.request_log.files import add_file, erase, log_files
from distillery.request_log.read import read_log
from tests.support.request_log import MAX_BYTES, add_labels, add_requests, request_rows
from tests.support.service import ROOT


def ids(folder: Path) -> list[str]:
    found: list[str] = read_log(folder).table["id"].to_pylist()
    return found


def test_the_oldest_files_are_removed_when_the_folder_is_full(tmp_path: Path) -> None:
    added = [
        add_file(tmp_path, "requests", request_rows(start, start + 20), process=0, max_bytes=MAX_BYTES)
        for start in (0, 20, 40)
    ]
    room = sum(one.size for one in added)
    last = add_file(tmp_path, "requests", request_rows(60, 80), process=1, max_bytes=room)
    assert last.removed >= added[0].size
    assert last.total == sum(file.stat().st_size for file in log_files(tmp_path, "requests")) <= room
    assert set(ids(tmp_path)) == {f"r{number}" for number in range(20, 80)}


def test_rewriting_a_file_does_not_make_it_the_newest(tmp_path: Path) -> None:
    add_requests(tmp_path, 0, 10)
    add_requests(tmp_path, 10, 20)
    before = log_files(tmp_path, "requests")
    erase(tmp_path, ["r3"])
    assert log_files(tmp_path, "requests") == before


def test_erasing_removes_images_and_labels_of_an_id_from_all_files(tmp_path: Path) -> None:
    add_requests(tmp_path, 0, 10)
    add_requests(tmp_path, 5, 6, index=1)
    add_requests(tmp_path, 20, 21)
    add_labels(tmp_path, {"r5": 5, "r6": 6})
    erased = erase(tmp_path, ["r5", "r20", "never"])
    assert (dict(erased.requests), dict(erased.labels)) == ({"r5": 2, "r20": 1}, {"r5": 1})
    log = read_log(tmp_path)
    assert set(log.table["id"].to_pylist()) == {f"r{number}" for number in range(10) if number != 5}
    assert log.labels[log.labels >= 0].tolist() == [6]
    assert len(log_files(tmp_path, "requests")) == 1  # a file without rows is removed
    assert b"r5" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_erased_rows_do_not_return_from_the_memory_of_a_service(tmp_path: Path) -> None:
    add_requests(tmp_path, 0, 5)
    in_memory = request_rows(5, 10)
    erase(tmp_path, ["r7"])
    added = add_file(tmp_path, "requests", in_memory, process=0, max_bytes=MAX_BYTES)
    add_labels(tmp_path, {"r7": 7, "r8": 8})
    assert added.rows == 4
    assert "r7" not in ids(tmp_path)
    assert "r7" not in json.dumps(erase(tmp_path, ["r8"]).labels)


def test_a_later_request_with_an_erased_id_is_logged(tmp_path: Path) -> None:
    add_requests(tmp_path, 0, 5)
    erase(tmp_path, ["r3"])
    add_requests(tmp_path, 3, 4, moment=time.time() + 1)
    assert "r3" in ids(tmp_path)


def test_erased_ids_are_forgotten_after_a_day(tmp_path: Path) -> None:
    add_requests(tmp_path, 0, 5)
    erase(tmp_path, ["r1"])
    path = tmp_path / "erased.json"
    path.write_text(
        json.dumps({name: moment - 86400 for name, moment in json.loads(path.read_text()).items()})
    )
    erase(tmp_path, ["r2"])
    assert len(json.loads(path.read_text())) == 1


def test_a_file_is_added_only_after_an_erasure_in_another_process_has_ended(tmp_path: Path) -> None:
    add_requests(tmp_path, 0, 5)
    setup = "import sys; from tests.support.request_log import *; print(flush=True)"
    script = f"{setup}\nadd_requests(Path(sys.argv[1]), 5, 6)"
    command = [sys.executable, "-c", script, str(tmp_path)]
    with (tmp_path / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as other:
            assert other.stdout
            other.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                other.wait(0.3)
            fcntl.flock(lock, fcntl.LOCK_UN)
    assert (other.returncode, len(ids(tmp_path))) == (0, 6)


def test_errors_name_what_is_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(
        RequestLogError, match=r"there is no request log .*/none; name the folder of --request-log"
    ):
        erase(tmp_path / "none", ["x"])
    (tmp_path / "erased.json").write_text("[1")
    with pytest.raises(
        RequestLogError, match=r"erased\.json is damaged: remove it, then erase the ids again"
    ):
        erase(tmp_path, ["x"])
