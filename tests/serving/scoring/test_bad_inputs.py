"""Inputs that are hostile, damaged or of the wrong kind: set aside with the reason; the run goes on."""

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.model.tensors import Images
from tests.support.scoring import Score, rows


def reasons(out: Path) -> dict[str | None, tuple[str, str]]:
    """Return code and message of what was set aside, by the name of the item."""
    return {row["item"]: (row["code"], row["message"]) for row in rows(out, "rejected")}


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.size, found.linkname = kind, size, link
    return found


def test_members_of_a_hostile_tar_are_set_aside_and_nothing_is_written_or_followed(
    pictures: list[bytes], score: Score, tmp_path: Path
) -> None:
    (tmp_path / "secret.png").write_bytes(pictures[0])
    tar = tmp_path / "hostile.tar"
    with tarfile.open(tar, "w") as archive:
        archive.addfile(member("good/1.png", size=len(pictures[1])), io.BytesIO(pictures[1]))
        archive.addfile(member("../up.png", size=len(pictures[1])), io.BytesIO(pictures[1]))
        archive.addfile(member("/root.png", size=len(pictures[1])), io.BytesIO(pictures[1]))
        archive.addfile(member("link.png", tarfile.SYMTYPE, link=str(tmp_path / "secret.png")))
        archive.addfile(member("hard.png", tarfile.LNKTYPE, link="good/1.png"))
        archive.addfile(member("pipe.png", tarfile.FIFOTYPE))
        archive.addfile(member("device.png", tarfile.CHRTYPE))
        archive.addfile(member("folder.png", tarfile.DIRTYPE))
        archive.addfile(member("large.png", size=40_000), io.BytesIO(bytes(40_000)))
        archive.addfile(member("\udcff.png", size=len(pictures[2])), io.BytesIO(pictures[2]))
        archive.addfile(member("y" * 5000 + ".png", size=len(pictures[2])), io.BytesIO(pictures[2]))
        archive.addfile(member("x" * 300 + ".png", size=len(pictures[2])), io.BytesIO(pictures[2]))
    before = sorted(tmp_path.iterdir())
    assert score(tar, "--out", tmp_path / "out", "--max-body-bytes", 30_000) == 0
    assert [row["item"] for row in rows(tmp_path / "out")] == ["good/1.png", "?.png", "x" * 300 + ".png"]
    assert reasons(tmp_path / "out") == {
        "../up.png": ("unsafe_item", "its name leads out of the archive"),
        "/root.png": ("unsafe_item", "its name leads out of the archive"),
        "link.png": ("unsafe_item", f"it is a link to {str(tmp_path / 'secret.png')[:80]!r}"),
        "hard.png": ("unsafe_item", "it is a link to 'good/1.png'"),
        "pipe.png": ("unsafe_item", "it is not a regular file"),
        "device.png": ("unsafe_item", "it is not a regular file"),
        "y" * 4096: ("unsafe_item", "its name has 5,004 characters; expected at most 4,096"),
        "large.png": ("body_too_large", "it has 40,000 bytes; one item may have 30,000"),
    }
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "out"])


def test_links_and_pipes_in_a_folder_are_set_aside_and_not_opened(
    pictures: list[bytes], score: Score, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/secret.png").write_bytes(pictures[0])
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "good.png").write_bytes(pictures[0])
    (folder / "link.png").symlink_to(tmp_path / "elsewhere/secret.png")
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "pipe.png")
    assert score(folder, "--out", tmp_path / "out") == 0
    assert [row["item"] for row in rows(tmp_path / "out")] == ["good.png"]
    assert reasons(tmp_path / "out") == {
        "link.png": ("unsafe_item", "it is a symbolic link; copy the file it leads to"),
        "pipe.png": ("unsafe_item", "it is not a regular file"),
    }


def _npy(path: Path, digits: Images) -> None:
    np.save(path, digits)


def _idx(path: Path, digits: Images) -> None:
    path.write_bytes(
        bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4) for size in digits.shape) + digits.tobytes()
    )


def _gzip(path: Path, digits: Images) -> None:
    _idx(path, digits)
    path.write_bytes(gzip.compress(path.read_bytes()))


def _parquet(path: Path, digits: Images) -> None:
    pq.write_table(pa.table({"image": digits.reshape(-1, 784).tolist()}), path, row_group_size=50)


def _tar(path: Path, digits: Images) -> None:
    with tarfile.open(path, "w") as archive:
        for number, digit in enumerate(digits):
            archive.addfile(member(f"{number}.png", size=784), io.BytesIO(digit.tobytes()))


@pytest.mark.parametrize(
    ("name", "write", "predicted"),
    [
        ("array.npy", _npy, 0),  # its header says how large it must be
        ("images-idx3-ubyte", _idx, 0),
        ("images.gz", _gzip, 50),
        ("images.parquet", _parquet, 0),  # it ends with what describes it
        ("images.tar", _tar, 50),
    ],
)
def test_a_truncated_input_is_set_aside_after_what_it_has_and_the_others_are_scored(
    name: str,
    write: Callable[[Path, Images], None],
    predicted: int,
    digits: Images,
    score: Score,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    path = tmp_path / name
    write(path, digits)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    np.save(tmp_path / "good.npy", digits)
    arguments = [path, tmp_path / "good.npy", "--out", tmp_path / "out", "--part-items", 50]
    for _ in range(2):  # the second run has nothing to do, and says the same
        assert score(*arguments) == 1
        assert f"{path}: it " in capsys.readouterr().err
    found = rows(tmp_path / "out")
    assert len([row for row in found if row["source"].endswith("good.npy")]) == 200
    assert len([row for row in found if row["source"] == str(path)]) >= predicted
    codes = {row["code"] for row in rows(tmp_path / "out", "rejected")}
    assert codes == {"unreadable_input"}


def test_a_damaged_row_group_costs_its_rows_only(digits: Images, score: Score, tmp_path: Path) -> None:
    path = tmp_path / "images.parquet"
    _parquet(path, digits)
    content = bytearray(path.read_bytes())
    begin = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    content[begin : begin + 40] = bytes(40)
    path.write_bytes(content)
    assert score(path, "--out", tmp_path / "out", "--part-items", 50) == 1
    assert {row["index"] // 50 for row in rows(tmp_path / "out")} == {0, 2, 3}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"\x93NUMPY", "it is not a NumPy file"),
        ("a.npy", np.zeros((2, 28, 28), np.float32), "it has the type float32; expected uint8, ink 0–255"),
        (
            "a.npy",
            np.zeros((2, 32, 32), np.uint8),
            "its shape is (2, 32, 32); expected (N, 28, 28) or (N, 784)",
        ),
        ("a.npy", np.array([{}]), "it has the type object; expected uint8"),
        ("a.idx", b"\0\0\x0d\x03" + bytes(12), "its type is 0xd; expected 0x8, unsigned bytes"),
        ("a.idx", b"hello", "it is not an IDX file: it begins with b'hell'"),
        ("a.gz", b"\x1f\x8bhello", "it is not valid gzip"),
        (
            "a.gz",
            gzip.compress(b"\0\0\x08\x03\xff\xff\xff\xff\0\0\0\x1c\0\0\0\x1c"),
            "too few for the 4,294,967,295",
        ),
        ("a.tar", b"", "it is not a tar file, or damaged"),
        ("a.tar", bytes(range(256)) * 8, "it is not a tar file, or damaged"),
        ("a.parquet", b"PAR1 hello PAR1", "it is not a Parquet file, or damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",  # that of gzip has the time in it
)
def test_what_is_no_such_file_is_set_aside_with_the_reason(
    name: str, content: bytes | Images, message: str, score: Score, tmp_path: Path
) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        np.save(tmp_path / name, content)
    assert score(tmp_path / name, "--out", tmp_path / "out") == 1
    [(code, found)] = reasons(tmp_path / "out").values()
    assert code == "unreadable_input"
    assert message in found
    assert rows(tmp_path / "out") == []


def test_a_header_that_declares_gigabytes_is_not_read(score: Score, tmp_path: Path) -> None:
    header = tarfile.TarInfo("a.png")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 4 << 30
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(5 << 30)  # holes
    assert score(tmp_path / "a.tar", "--out", tmp_path / "out") == 1
    [(_, message)] = reasons(tmp_path / "out").values()
    assert "a header of 4,294,967,296 bytes" in message


def test_rows_of_parquet_that_are_no_image_are_set_aside_with_the_services_reasons(
    digits: Images, score: Score, tmp_path: Path
) -> None:
    good = digits[0].ravel().tolist()
    images = [good, None, good[1:], [*good[1:], 256], [*good[1:], -1], [*good[1:], None], good]
    pq.write_table(pa.table({"image": pa.array(images, pa.list_(pa.int32()))}), tmp_path / "a.parquet")
    assert score(tmp_path / "a.parquet", "--out", tmp_path / "out") == 0
    assert [row["index"] for row in rows(tmp_path / "out")] == [0, 6]
    assert [row["code"] for row in rows(tmp_path / "out", "rejected")] == [
        "invalid_type",
        "invalid_shape",
        "invalid_range",
        "invalid_range",
        "invalid_type",
    ]


def test_a_column_that_declares_many_more_values_than_pixels_is_not_read(
    score: Score, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"image": [[0] * 3_000_000]}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    assert score(tmp_path / "a.parquet", "--out", tmp_path / "out") == 1
    [(_, message)] = reasons(tmp_path / "out").values()
    assert message == "column image has 3,000,000 values in 1 rows; expected 784 in each"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.npy", "missing.npy does not exist; expected a folder of pictures, .tar"),
        ("notes.txt", "notes.txt is of an unknown kind; expected a folder of pictures, .tar"),
        ("seven.png", "seven.png is a picture; name the folder that it is in"),
        ("a.tar.gz", "a.tar.gz is compressed; decompress it first"),
        ("empty", "empty contains no pictures (.png,"),
        (
            "two.parquet",
            "two.parquet has these columns of pictures or of lists of integers: a, b; name one with",
        ),
        (
            "none.parquet",
            "none.parquet has these columns of pictures or of lists of integers: none; name one",
        ),
    ],
)
def test_an_input_of_an_unknown_kind_is_an_error_before_the_work_begins(
    name: str, message: str, score: Score, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for file in ("notes.txt", "seven.png", "a.tar.gz"):
        (tmp_path / file).touch()
    pq.write_table(pa.table({"a": [b""], "b": [[0]]}), tmp_path / "two.parquet")
    pq.write_table(pa.table({"a": [1.0]}), tmp_path / "none.parquet")
    assert score(tmp_path / name, "--out", tmp_path / "out") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "run.json").exists()


def test_an_unknown_column_and_an_unknown_model_are_errors_with_the_known_ones(
    digits: Images, score: Score, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _parquet(tmp_path / "a.parquet", digits)
    assert score(tmp_path / "a.parquet", "--out", tmp_path / "out", "--column", "imge") == 1
    assert "there is no column 'imge'; known: image; did you mean image?" in capsys.readouterr().err
    assert score(tmp_path / "a.parquet", "--out", tmp_path / "out", "--model", "studnt") == 1
    assert "there is no model 'studnt'; known: student; did you mean student?" in capsys.readouterr().err
