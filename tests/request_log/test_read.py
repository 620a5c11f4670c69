"""Reading a request log: images in order, the last label of each, and errors that name the file."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distillery.request_log import RequestLogError
from distillery.request_log.arrow import pa, pq
from distillery.request_log.files import log_files
from distillery.request_log.read import read_log
from tests.support.request_log import add_labels, add_requests
from tests.support.training.samples import sample_test


def test_images_come_in_order_with_the_last_label_of_each(tmp_path: Path) -> None:
    add_requests(tmp_path, 10, 20, moment=200)
    add_requests(tmp_path, 0, 10, moment=100)
    add_labels(tmp_path, {"r3": 3}, moment=300)
    add_labels(tmp_path, {"r3": 4, "r12": 2, "r999": 9}, moment=400)
    add_labels(tmp_path, {"r5": 5}, index=1, moment=400)  # of an image that is not in the log
    log = read_log(tmp_path)
    assert len(log) == 20
    assert log.images.dtype == np.uint8
    assert np.array_equal(log.images, sample_test().images.numpy()[:20].reshape(20, 28, 28))
    assert log.digits.tolist() == sample_test().labels[:20].tolist()
    assert {number: label for number, label in enumerate(log.labels.tolist()) if label >= 0} == {3: 4, 12: 2}
    assert log.times[[0, 10]].tolist() == [100.0, 200.00001]


def test_an_image_that_was_logged_twice_counts_once(tmp_path: Path) -> None:
    add_requests(tmp_path, 0, 5, moment=100)
    add_requests(tmp_path, 2, 3, moment=200, teacher_digit=8, reason="disagreement")
    log = read_log(tmp_path)
    assert len(log) == 5
    assert log.table["teacher_digit"].to_pylist().count(8) == 1


def test_the_newest_images_are_read_without_the_older_files(tmp_path: Path) -> None:
    add_requests(tmp_path, 0, 10, moment=100)
    add_requests(tmp_path, 10, 20, moment=200)
    log_files(tmp_path, "requests")[0].write_bytes(b"damaged")
    assert read_log(tmp_path, newest=4).table["id"].to_pylist() == [f"r{n}" for n in range(16, 20)]


def test_the_hash_depends_on_images_and_labels_and_not_on_files(tmp_path: Path) -> None:
    together, apart = tmp_path / "together", tmp_path / "apart"
    add_requests(together, 0, 10, moment=100)
    add_requests(apart, 0, 5, moment=100)
    add_requests(apart, 5, 10, moment=100)
    before = read_log(together).sha256
    assert before == read_log(apart).sha256
    add_labels(apart, {"r1": 1})
    assert read_log(apart).sha256 != before


def test_temporary_files_are_skipped(tmp_path: Path) -> None:
    add_requests(tmp_path, 0, 3)
    (tmp_path / ".requests-20260101T000000-0-aa.parquet-1234.tmp").write_bytes(b"PAR1")
    assert len(read_log(tmp_path)) == 3


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        RequestLogError, match=r"has no images \(requests-\*\.parquet\); a service writes them"
    ):
        read_log(tmp_path)
    with pytest.raises(RequestLogError, match="there is no request log"):
        read_log(tmp_path / "none")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1 torn"])
def test_a_torn_file_is_named(content: bytes, tmp_path: Path) -> None:
    add_requests(tmp_path, 0, 3)
    path = tmp_path / "requests-20260101T000000-0-aa.parquet"
    path.write_bytes(content)
    with pytest.raises(RequestLogError, match=rf"{path} cannot be read: .*; remove it from the folder"):
        read_log(tmp_path)


def test_a_foreign_file_is_named_with_its_column(tmp_path: Path) -> None:
    add_requests(tmp_path, 0, 3)
    [path] = log_files(tmp_path, "requests")
    table = pq.read_table(path)
    for changed, message in (
        (table.drop_columns(["image"]), "column image is missing, expected fixed_size_binary"),
        (table.set_column(1, "id", pa.array([1, 2, 3])), "column id is int64, expected string"),
        (
            table.set_column(9, "digit", pa.array([1, 2, 11], pa.int8())),
            "digit is 11, expected 0 to 9; remove the file",
        ),
    ):
        pq.write_table(changed, path)
        with pytest.raises(RequestLogError, match=message):
            read_log(tmp_path)


def test_a_program_without_pyarrow_names_the_command_that_installs_it() -> None:
    script = "import sys; sys.modules['pyarrow'] = None\nimport distillery.request_log.read"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "a request log needs pyarrow: pip install '.[scoring]'" in done.stderr
