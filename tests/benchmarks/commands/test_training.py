"""`distillery-bench training`: the notebook's loop learns, and the comparison with it runs end to end."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import distillery
from benchmarks.commands.training import Training
from benchmarks.training import time_to_accuracy
from benchmarks.training.notebook_loop import NotebookLoop, notebook_digits, unpack_for_torchvision
from tests.support.training.samples import sample_training, samples_as_mnist
from training.data import mnist as data
from training.loop.trainer import Job, validate
from training.recipe.schema import Distillation, Model

NARROW = ["--teacher.hidden=[200]", "--student.hidden=[100]"]
SMALL = Model(hidden=[32], batch_size=50, learning_rate=1e-2)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The sample digits in the place of MNIST."""
    with samples_as_mnist(tmp_path / "mnist"):
        yield tmp_path / "mnist"


def test_the_notebooks_loop_learns_from_labels_and_from_a_teacher(folder: Path, tmp_path: Path) -> None:
    unpack_for_torchvision(folder, tmp_path / "notebook")
    digits = notebook_digits(tmp_path / "notebook")
    held_out = data.held_out_places(digits.targets, 100)
    places = [place for place in range(600) if not held_out[place]]
    teacher = NotebookLoop(Job("teacher", SMALL, 0), digits)
    learning = SMALL.model_copy(update={"distillation": Distillation(temperature=4)})
    student = NotebookLoop(Job("student", learning, 0), digits, teacher=teacher.network)
    for loop in (teacher, student):
        seconds = [loop.train(places) for _ in range(4)]
        assert min(seconds) > 0
        assert validate(loop.network, sample_training()[1])["validation_accuracy"] > 0.5


def test_the_comparison_of_epochs_is_kept_and_printed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--no-target", "--digits=128", "--rounds=2", "--threads=1", *NARROW]
    places = [f"--data-dir={folder}", f"--results-dir={tmp_path / 'results'}"]
    status = distillery.main("bench", {"training": Training}, arguments=["training", *flags, *places])
    assert status == 0
    output = capsys.readouterr().out
    (file,) = (tmp_path / "results").iterdir()
    kept = json.loads(file.read_text())["data"]
    last = json.loads(output.splitlines()[-1])
    for role in ("teacher", "student"):
        row = kept["epochs"][role]
        assert len(row["rounds"]["ours_s"]) == len(row["rounds"]["notebook_s"]) == 2
        assert last[f"{role}_epoch_ratio"] == row["ratio"] > 0
        assert (row["targets_s"] > 0) == (role == "student")
    assert kept["notebook_recipe"]["models"]["teacher"]["batch_size"] == 64


def test_the_time_to_accuracy_is_measured_for_both_loops(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # reached within six epochs of 500 digits on any CPU
    monkeypatch.setattr(time_to_accuracy, "NOTEBOOK_ACCURACY", 0.5)
    flags = [
        "--digits=128",
        "--rounds=1",
        "--threads=1",
        "--teacher.batch-size=50",
        "--student.batch-size=50",
        *NARROW,
    ]
    places = [f"--data-dir={folder}", f"--results-dir={tmp_path / 'results'}"]
    status = distillery.main("bench", {"training": Training}, arguments=["training", *flags, *places])
    assert status == 0
    (file,) = (tmp_path / "results").iterdir()
    target = json.loads(file.read_text())["data"]["target"]
    assert len(target["ours"]) == 2
    for run in (*target["ours"], target["corrected_loop"]):
        assert run["validation_accuracy"] >= 0.5
        assert run["test_accuracy"] > 0.3
        assert run["seconds"] > 0
        assert run["student_epochs"] >= 1
    assert target["ours"][0]["teacher_epochs"] == target["recipe"]["models"]["teacher"]["epochs"] == 6
    assert target["ratio_to_schedule"] > 0


def test_an_option_changes_one_setting_of_the_student() -> None:
    default = Training()
    bench = Training(_cli_parse_args=["--student.epochs=3", "--student.distillation.temperature=8"])
    assert bench.teacher == default.teacher
    assert bench.student.hidden == default.student.hidden == [800, 800]
    assert bench.student.epochs == 3
    assert bench.student.distillation
    assert bench.student.distillation == Distillation(temperature=8, alpha=0.5)
