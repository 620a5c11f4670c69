"""Settings come from flags, environment, file and defaults, in that order, and a mistake is told in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from distillery import Command, DistilleryError, main


class Stage(BaseModel):
    model_config = ConfigDict(extra="forbid")
    epochs: int = Field(16, gt=0, description="passes over the training digits")
    learning_rate: float = 3e-3

    @field_validator("epochs")
    @classmethod
    def _not_unlucky(cls, epochs: int) -> int:
        if epochs == 13:
            raise ValueError("epochs are not 13, but 12 or 14")
        return epochs


class Train(Command):
    """Train something.

    Two paragraphs of help.
    """

    config: Path | None = None
    fast: bool = False
    teacher: Stage = Stage()

    @model_validator(mode="after")
    def _fast_is_short(self) -> "Train":
        if self.fast and self.teacher.epochs > 100:
            raise ValueError(f"{self.teacher.epochs} epochs are not fast")
        return self

    def run(self) -> None:
        print(self.teacher.epochs, self.teacher.learning_rate, self.fast)


class Fail(Command):
    """Fail in a way the person can mend."""

    how: str = "mistake"

    def run(self) -> None:
        raise KeyboardInterrupt if self.how == "interrupt" else DistilleryError("3 is too many; use 2")


def call(*arguments: str) -> int:
    return main("tool", {"train": Train, "fail": Fail}, default="train", arguments=arguments)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text("fast = true\n[teacher]\nepochs = 2\nlearning_rate = 0.5\n")
    return path


def test_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 0
    assert capsys.readouterr().out == "16 0.003 False\n"


def test_each_source_goes_before_the_next(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILLERY_TEACHER__EPOCHS", "3")
    monkeypatch.setenv("DISTILLERY_TEACHER__LEARNING_RATE", "0.25")
    assert call("--config", str(file), "--teacher.epochs", "4") == 0
    assert capsys.readouterr().out == "4 0.25 True\n"


def test_the_file_can_be_named_by_the_environment(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILLERY_CONFIG", str(file))
    assert call("--no-fast") == 0
    assert capsys.readouterr().out == "2 0.5 False\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--teacher.epochs", "0"], ["teacher.epochs", "greater than 0", "found '0'"]),
        (["--teacher.learning-rate", "fast"], ["teacher.learning_rate", "valid number", "fast"]),
    ],
)
def test_a_wrong_value_is_named(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message


def test_a_validator_of_ours_has_the_last_word(capsys: pytest.CaptureFixture[str]) -> None:
    """What it was given may be the whole of the settings: it names what matters."""
    assert call("--teacher.epochs=13") == 2
    assert capsys.readouterr().err.startswith("tool: teacher.epochs: epochs are not 13, but 12 or 14\n")
    assert call("--teacher.epochs=101", "--fast") == 2
    assert capsys.readouterr().err.startswith("tool: 101 epochs are not fast\n")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "from-environment"),
        (["--config", "a"], "a"),
        (["--config=a", "--fast"], "a"),
        (["--config=a", "--config", "b"], "b"),
        (["--config-of=a"], "from-environment"),
    ],
)
def test_the_file_is_known_before_anything_is_read(
    arguments: list[str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Train.named_file(["--fast"]) is None
    monkeypatch.setenv("DISTILLERY_CONFIG", "from-environment")
    assert Train.named_file(arguments) == named


def test_an_unknown_field_in_the_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[teacher]\nepoch = 3\n")
    assert call("--config", str(path)) == 2
    assert "teacher.epoch: Extra inputs are not permitted (found 3)" in capsys.readouterr().err


def test_a_missing_or_broken_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--config", str(tmp_path / "none.toml")) == 1
    assert "there is no file" in capsys.readouterr().err
    broken = tmp_path / "broken.toml"
    broken.write_text("epochs =")
    assert call("--config", str(broken)) == 1
    assert "is not valid TOML" in capsys.readouterr().err


def test_an_unknown_flag_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        call("--bogus")
    assert "unrecognized arguments: --bogus" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        call("--help")
    text = capsys.readouterr().out
    for words in (
        "Two paragraphs of help.",
        "--teacher.epochs",
        "passes over the training digits",
        "(default: 16)",
    ):
        assert words in text


def test_mistakes_and_interruptions_have_their_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("fail") == 1
    assert capsys.readouterr().err == "tool fail: 3 is too many; use 2\n"
    assert call("fail", "--how", "interrupt") == 130
    assert "interrupted; the same command goes on from here" in capsys.readouterr().err


def test_without_a_default_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("tool", {"train": Train, "fail": Fail}, arguments=[]) == 2
    assert "fail         Fail in a way the person can mend." in capsys.readouterr().out


def test_nothing_is_reported_to_anybody(tmp_path: Path) -> None:
    """onnxruntime keeps its reports below the home folder; a session of ours leaves none there."""
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    code = "import export.parity, onnxruntime; onnxruntime.get_available_providers(); onnxruntime.SessionOptions()"
    subprocess.run([sys.executable, "-c", code], env=home, cwd=Path(__file__).parent.parent, check=True)
    assert list(tmp_path.rglob("*onnxruntime*")) == []
