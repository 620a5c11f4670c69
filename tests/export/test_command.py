"""`distillery-export` exports a run, leaves what is current, and rejects unknown names."""

from pathlib import Path
from shutil import copyfile, copytree

import pytest

from distillery import main
from export.__main__ import COMMANDS
from export.commands.export import Export
from export.pipeline import Source
from export.splits import Splits
from serving.model.repository import load_repository


@pytest.fixture(scope="module")
def run_dir(trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run with student and teacher, whose current folders are links."""
    root = tmp_path_factory.mktemp("run")
    for name in ("student", "teacher"):
        folder = root / f"{name}-0"
        folder.mkdir()
        copyfile(trained[name], folder / "model.safetensors")
        (root / name).symlink_to(folder.name)
    return root


def test_a_run_without_links_is_found(run_dir: Path, tmp_path: Path) -> None:
    """On a file system that has none, a file contains the name of the current folder."""
    for name in ("student", "teacher"):
        copytree(run_dir / f"{name}-0", tmp_path / f"{name}-0123abcd")
        (tmp_path / name).write_text(f"{name}-0123abcd\n")
    (tmp_path / "evaluation.json").write_text("{}")
    (tmp_path / "notes").write_text("notes-of-mine")
    (tmp_path / "fast").write_text("fast-0123abcd")  # not finished
    assert Source.of_run(tmp_path) == [
        Source(name, tmp_path / f"{name}-0123abcd" / "model.safetensors") for name in ("student", "teacher")
    ]


def export(*arguments: str) -> int:
    return main("distillery-export", COMMANDS, default="export", arguments=arguments)


def test_a_run_is_exported_once(
    run_dir: Path,
    splits: Splits,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Splits, "read", lambda _: splits)
    flags = [f"--run-dir={run_dir}", f"--models-dir={tmp_path}"]
    assert export(*flags) == 0
    output = capsys.readouterr().out
    assert "exported   student, student-int8\n" in output
    assert "exported   teacher\n" in output
    assert list(load_repository(tmp_path)) == ["student", "student-int8", "teacher"]
    assert caplog.text == ""  # the lock is not named as something skipped
    assert export(*flags) == 0
    assert "unchanged  student, student-int8\nunchanged  teacher\n" in capsys.readouterr().out
    teacher = [f"--checkpoint={run_dir / 'teacher' / 'model.safetensors'}", "--name=teacher"]
    assert export(*teacher, f"--models-dir={tmp_path}", "--force", "--int8=teacher") == 0
    assert "exported   teacher, teacher-int8\n" in capsys.readouterr().out


@pytest.mark.parametrize("int8", ["student,fast", "fast"])
def test_an_unknown_model_in_int8_is_rejected(
    int8: str, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(f"--run-dir={run_dir}", f"--models-dir={tmp_path / 'models'}", f"--int8={int8}") == 1
    error = capsys.readouterr().err
    assert "--int8: there is no model 'fast'; known: student, teacher" in error
    assert not (tmp_path / "models").exists()


def test_the_default_int8_model_may_be_missing(trained: dict[str, Path]) -> None:
    Export(checkpoint=trained["teacher"], name="mine")._require_known([Source("mine", trained["teacher"])])
