"""`distillery-bench score`, on real inputs and processes."""

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import COMMANDS
from benchmarks.results.files import latest, read_result
from distillery import main


@pytest.mark.slow
def test_arrays_and_pictures_are_scored_and_compared_with_the_session(
    one_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--models-dir",
        str(one_model),
        "--results-dir",
        str(tmp_path),
        "--processes",
        "1",
        "--engine",
        "local",
    ]
    assert (
        main("distillery-bench", COMMANDS, arguments=["score", *flags, "--rounds", "2", "--seconds", "0.1"])
        == 0
    )
    path = latest("score", folder=tmp_path)
    assert path
    rows = read_result(path)["data"]["rows"]
    assert [(row["model"], row["input"]) for row in rows] == [("student", "arrays"), ("student", "pictures")]
    arrays, pictures = rows
    assert arrays["session_images_per_s"] == pictures["session_images_per_s"] > arrays["images_per_s"] / 2
    assert arrays["images_per_s"] > 2 * pictures["images_per_s"] > 0  # pictures take milliseconds to decode
    assert len(arrays["rounds_images_per_s"]) == arrays["share"]["rounds"] == 2
    printed = capsys.readouterr().out
    assert "of 1 × one" in printed
    assert json.loads(printed.splitlines()[-1])["rows"][0]["share"] == arrays["share"]
