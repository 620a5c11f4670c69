"""`distillery-bench pictures`: real pictures, converted in processes, predicted by real models."""

from pathlib import Path

import pytest

import distillery
from benchmarks.commands.pictures import Pictures
from benchmarks.report.markdown import Source, fill
from benchmarks.results.files import read_result
from tests.support.training.samples import samples_as_mnist


def bench(*flags: str) -> int:
    return distillery.main("bench", {"pictures": Pictures}, arguments=["pictures", *flags])


def test_every_model_predicts_every_picture(
    two_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.commands.pictures.CHUNK", 5)
    flags = (
        f"--models-dir={two_models}",
        f"--results-dir={tmp_path}",
        "--digits=10",
        "--kinds=MNIST,MNIST inverted",
    )
    with samples_as_mnist(tmp_path / "mnist"):
        assert bench(*flags) == 0
    (path,) = tmp_path.glob("pictures-*.json")
    data = read_result(path)["data"]
    plain, inverted = data["rows"]
    assert plain["correct"] == inverted["correct"]  # converted to the same images
    assert plain["correct"].keys() == data["models"].keys() == {entry.name for entry in two_models.iterdir()}
    assert all(share > 0.5 for share in plain["correct"].values())
    assert (data["digits"], data["split"], plain["rejected"]) == (10, "test", 0)
    apart, touching = data["numbers"]
    assert (apart["numbers"], touching["numbers"], apart["rejected"]) == (10, 10, 0)
    assert all(0 <= share <= 1 for row in data["numbers"] for share in row["correct"].values())
    assert max(apart["correct"].values()) > 0.1  # of networks that read a third of the digits wrongly
    assert "MNIST inverted" in capsys.readouterr().out
    page = fill("pictures", {"pictures": Source(read_result(path), "result.json")}, "pictures/all.png")
    assert "![MNIST inverted](pictures/mnist-inverted.png)" in page


def test_an_unknown_kind_is_rejected(two_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(f"--models-dir={two_models}", "--kinds=vignete") == 1
    assert "did you mean vignette?" in capsys.readouterr().err
