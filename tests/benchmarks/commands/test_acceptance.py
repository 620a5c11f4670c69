"""`distillery-bench acceptance`: real models on digits, and on images without a digit."""

import shutil
from pathlib import Path

import matplotlib as mpl
import pytest

import distillery
from benchmarks.commands.acceptance import Acceptance
from benchmarks.results.files import read_result
from serving.model.repository import load_repository
from tests.support.training.samples import samples_as_mnist


def bench(*flags: str) -> int:
    return distillery.main("bench", {"acceptance": Acceptance}, arguments=["acceptance", *flags])


def test_digits_letters_and_other_kinds_are_counted(
    two_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fonts = tmp_path / "fonts" / "family"
    fonts.mkdir(parents=True)
    shutil.copy(Path(mpl.get_data_path()) / "fonts" / "ttf" / "STIXGeneral.ttf", fonts)
    flags = (f"--models-dir={two_models}", f"--results-dir={tmp_path}", f"--fonts-dir={fonts.parent}")
    with samples_as_mnist(tmp_path / "mnist"):
        fashion = f"--fashion-dir={tmp_path / 'mnist'}"  # any images in the same format
        assert bench(*flags, "--images=40", fashion) == 0
    (path,) = tmp_path.glob("acceptance-*.json")
    rows = {row["kind"]: row for row in read_result(path)["data"]["rows"]}
    assert list(rows) == [
        "test digits", "typed digits", "letters", "letters unlike digits", "two digits", "scribbles", "noise",
        "empty fields", "Fashion-MNIST",
    ]  # fmt: skip
    for name, entry in load_repository(two_models).items():
        rule = entry.manifest.acceptance
        assert rule
        assert rows["test digits"]["accepted"][name] == rule.test_accepted / 200
        assert rows["test digits"]["errors"][name] == rule.test_errors
    assert (rows["letters"]["images"], rows["letters unlike digits"]["images"]) == (52 * 3, 37 * 3)
    assert {kind for kind, row in rows.items() if row["errors"]} == {"test digits", "typed digits"}
    assert "typed digits" in capsys.readouterr().out


def test_a_folder_without_fonts_is_rejected(
    two_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with samples_as_mnist(tmp_path / "mnist"):
        assert bench(f"--models-dir={two_models}", f"--fonts-dir={tmp_path}") == 1
    assert "--fonts-dir: there is no font" in capsys.readouterr().err
