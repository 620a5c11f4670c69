"""Predictions of bulk scoring: the same for every kind of input, and those of the service."""

import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.codecs.pictures.decode import decode_pictures
from serving.model.tensors import Images
from tests.support.scoring import Score, files, png, rows
from tests.support.service import Service

RAW = {"Content-Type": "application/octet-stream"}


def idx(digits: Images) -> bytes:
    return bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4) for size in digits.shape) + digits.tobytes()


def write_arrays(folder: Path, digits: Images) -> list[Path]:
    """Write the digits in every format for arrays."""
    flat = digits.reshape(len(digits), -1)
    rows_of = digits.astype(np.int64).tolist()
    values = pa.array(flat.ravel())
    columns = {
        "fixed": pa.FixedSizeListArray.from_arrays(values, 784),
        "nested": pa.array(rows_of),
        "raw": pa.array([digit.tobytes() for digit in digits]),
    }
    np.save(folder / "cube.npy", digits)
    np.save(folder / "flat.npy", flat)
    (folder / "images-idx3-ubyte").write_bytes(idx(digits))
    (folder / "images.idx.gz").write_bytes(gzip.compress(idx(digits)))
    for name, column in columns.items():
        table = pa.table({"label": pa.array(range(len(digits))), "image": column})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=70)
    return sorted(folder.iterdir())


def write_pictures(folder: Path, pictures: list[bytes]) -> list[Path]:
    """Write the pictures in every format for pictures, with files that are none between them."""
    (folder / "pictures/some").mkdir(parents=True)
    (folder / "pictures/labels.csv").write_text("0,1")
    with tarfile.open(folder / "shard.tar", "w") as archive:
        for number, content in enumerate(pictures):
            (folder / f"pictures/some/{number:03}.png").write_bytes(content)
            for name, part in ((f"train/{number:03}.png", content), (f"train/{number:03}.cls", b"7")):
                member = tarfile.TarInfo(name)
                member.size = len(part)
                archive.addfile(member, io.BytesIO(part))
    files = [{"bytes": content, "path": f"{number}.png"} for number, content in enumerate(pictures)]
    pq.write_table(
        pa.table({"image": files, "label": list(range(len(files)))}), folder / "structures.parquet"
    )
    pq.write_table(pa.table({"file": pictures}), folder / "bytes.parquet", row_group_size=7)
    return [folder / name for name in ("pictures", "shard.tar", "structures.parquet", "bytes.parquet")]


def by_source(found: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    sources = dict.fromkeys(row["source"] for row in found)
    return {source: [row for row in found if row["source"] == source] for source in sources}


def values(found: list[dict[str, Any]]) -> list[Any]:
    names = ("index", "digit", "probabilities", "confidence", "accepted", "model", "version")
    return [[row[name] for name in names] for row in found]


def test_every_kind_of_array_has_the_same_predictions(digits: Images, score: Score, tmp_path: Path) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    paths = write_arrays(inputs, digits)
    assert score(*paths, "--out", tmp_path / "out", "--part-items", 150) == 0
    found = by_source(rows(tmp_path / "out"))
    assert list(found) == [str(path) for path in paths]
    first = values(found[str(paths[0])])
    assert [row[0] for row in first] == list(range(200))
    assert all(values(one) == first for one in found.values())
    assert rows(tmp_path / "out", "rejected") == []


def test_every_kind_of_picture_has_the_predictions_of_its_pixels(
    pictures: list[bytes], score: Score, tmp_path: Path
) -> None:
    paths = write_pictures(tmp_path, pictures)
    np.save(tmp_path / "pixels.npy", decode_pictures([("", content) for content in pictures], 10**6))
    assert score(*paths, tmp_path / "pixels.npy", "--out", tmp_path / "out") == 0
    found = by_source(rows(tmp_path / "out"))
    expected = values(found.pop(str(tmp_path / "pixels.npy")))
    assert len(found) == 4
    assert all(values(one) == expected for one in found.values())
    assert found[str(tmp_path / "shard.tar")][3]["item"] == "train/003.png"
    assert found[str(tmp_path / "pictures")][3]["item"] == "some/003.png"


def test_a_request_with_the_same_images_has_the_same_predictions_bit_by_bit(
    digits: Images, score: Score, service: Service, tmp_path: Path
) -> None:
    np.save(tmp_path / "digits.npy", digits)
    assert score(tmp_path / "digits.npy", "--out", tmp_path / "out") == 0
    response = httpx.post(f"{service.url}/predict/student", content=digits.tobytes(), headers=RAW).json()
    found = rows(tmp_path / "out")
    assert {(row["model"], row["version"]) for row in found} == {(response["model"], response["version"])}
    for row, expected in zip(found, response["predictions"], strict=True):
        assert row["probabilities"] == np.float32(expected["probabilities"]).tolist()
        assert [row[name] for name in ("digit", "confidence", "accepted")] == [
            expected[name] for name in ("digit", "confidence", "accepted")
        ]


def test_one_picture_at_a_time_has_the_same_digits_and_the_same_reasons_from_the_service(
    digits: Images, pictures: list[bytes], score: Score, service: Service, tmp_path: Path
) -> None:
    """Probabilities of a run of one image may differ in the last bits on some processors."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    bad = {
        "blank": png(np.full((40, 40), 200, np.uint8)),
        "bomb": png(np.zeros((5000, 5000), np.uint8)),
        "document": b"%PDF-1.7",
        "empty": b"",
        "numbers": orjson.dumps({"image": digits[0].tolist()}),
        "numbers-above-255": orjson.dumps({"image": [256] * 784}),
        "pixels": digits[1].tobytes(),
        "text": b"hello",
        "truncated": pictures[0][:90],
        "two": digits[:2].tobytes(),
    }
    named = bad | {f"digit-{number}": content for number, content in enumerate(pictures[:6])}
    for name, content in named.items():
        (folder / f"{name}.png").write_bytes(content)
    assert score(folder, "--out", tmp_path / "out") == 0
    predicted = {row["item"]: row for row in rows(tmp_path / "out")}
    rejected = {row["item"]: row for row in rows(tmp_path / "out", "rejected")}
    assert sorted([*predicted, *rejected]) == sorted(f"{name}.png" for name in named)
    assert set(rejected) == {f"{name}.png" for name in set(bad) - {"numbers", "pixels"}}
    with httpx.Client(base_url=service.url, headers=RAW) as client:
        for name, content in named.items():
            response = client.post("/predict/student", content=content)
            if name == "two":  # a request may have two images, an item may not
                assert rejected["two.png"]["code"] == "too_many_images"
            elif response.is_success:
                [expected] = response.json()["predictions"]
                found = predicted[f"{name}.png"]
                assert [found["digit"], found["accepted"]] == [expected["digit"], expected["accepted"]]
                assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
            else:
                found = rejected[f"{name}.png"]
                assert {"code": found["code"], "message": found["message"]} == response.json()["error"]


@pytest.mark.slow
def test_any_number_of_processes_writes_the_same_files(
    digits: Images, pictures: list[bytes], score: Score, tmp_path: Path
) -> None:
    paths = write_pictures(tmp_path, [*pictures[:5], b"no picture"])
    np.save(tmp_path / "digits.npy", digits[:50])
    for processes in (0, 2):
        out = tmp_path / f"out{processes}"
        arguments = ["--out", out, "--part-items", 4, "--processes", processes]
        assert score(*paths, tmp_path / "digits.npy", *arguments) == 0
    assert len(files(tmp_path / "out0")) == 4 * 2 + 4 + 13
    assert files(tmp_path / "out0") == files(tmp_path / "out2")
