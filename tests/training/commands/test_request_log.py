"""`distillery-train --request-log`: students learn from it, other models do not and are used again."""

import json
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest

from distillery.request_log.distinct import content_hash, is_held_out
from tests.support.logged_images import write_log
from tests.support.training.samples import sample_test, sample_training
from tests.training.conftest import SmallRun, call, inside
from training.data.mnist_files import SHA256
from training.data.request_log import KEY
from training.model.checkpoint import load_checkpoint

TRAINING, _ = sample_training()
INVERTED, LABELS = 255 - TRAINING.images.numpy(), TRAINING.labels.tolist()


@pytest.fixture
def small_run(trained_run: SmallRun, tmp_path: Path) -> Iterator[SmallRun]:
    """A copy of the trained run, in whose folder the test runs."""
    copytree(trained_run.folder, tmp_path / "run", symlinks=True)
    with inside(tmp_path / "run"):
        yield SmallRun(tmp_path / "run", trained_run.output)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of inverted digits, half of them labelled, and of three test digits."""
    images = np.concatenate([INVERTED[:100], sample_test().images[:3].numpy()])
    write_log(tmp_path / "log", images, [label if row % 2 else -1 for row, label in enumerate(LABELS[:103])])
    return tmp_path / "log"


def test_a_student_learns_from_the_log_and_its_checkpoint_says_so(
    small_run: SmallRun, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    current = {name: (small_run.root / name).resolve() for name in ("teacher", "student-alone", "student")}
    assert call("--recipe=small.toml", f"--request-log={log}") == 0
    output = capsys.readouterr().out
    assert "images to learn from" in output
    assert "left out: 3 MNIST test images" in output
    assert output.count("trained before") == 2  # the teacher and the control
    for name in ("teacher", "student-alone"):
        assert (small_run.root / name).resolve() == current[name]
    assert (small_run.root / "student").resolve() != current["student"]
    metadata = load_checkpoint(small_run.root / "student" / "model.safetensors").metadata
    facts = metadata["request_log"]
    held_out = [row for row in range(100) if is_held_out(content_hash(INVERTED[row]))]
    assert facts["held_out"] == len(held_out)
    assert facts["validation"] == sum(row % 2 for row in held_out)
    assert facts["mnist_test"] == 3
    assert facts["labelled"] + facts["unlabelled"] == 100 - len(held_out)
    assert facts["per_epoch"] == 125  # a fifth of an epoch beside 500 digits
    assert 0 <= facts["errors"] <= facts["validation"]
    assert 0 <= facts["errors_of_teacher"] <= facts["validation"]
    assert metadata["dataset"].keys() == {*SHA256, KEY}
    assert len(metadata["dataset"][KEY]) == 64
    assert call("report", "--recipe=small.toml") == 0
    card = (small_run.root / "student" / "MODEL_CARD.md").read_text()
    assert f"It also learned from {facts['labelled'] + facts['unlabelled']} images of a request log" in card
    assert f"Of {facts['validation']} labelled images of the log" in card
    history = (small_run.root / "student" / "history.jsonl").read_text().splitlines()
    assert all("log_errors" in json.loads(line) for line in history)
    # Without the log, the model that was trained before is the current one again.
    assert call("--recipe=small.toml") == 0
    assert capsys.readouterr().out.count("trained before") == 3
    assert (small_run.root / "student").resolve() == current["student"]


@pytest.mark.usefixtures("small_run")
def test_the_same_log_trains_nothing_again_and_a_new_label_does(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--recipe=small.toml", f"--request-log={log}", "--models=student")
    for trained_before in (2, 3):
        assert call(*arguments) == 0
        trained = capsys.readouterr().out.count("trained before")
        assert trained in {trained_before, 3}
    write_log(log, INVERTED[:1], [LABELS[0]], first_id=5000)
    assert call(*arguments) == 0
    assert capsys.readouterr().out.count("trained before") == 2


def test_labels_are_required_where_nothing_else_can_be_learned(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path / "unlabelled", INVERTED[:20])
    log = f"--request-log={tmp_path / 'unlabelled'}"
    for option in (
        "--student.distillation.alpha=0",
        "--student.distillation.loss=dkd",
        "--student.leave-out=3",
    ):
        assert call("--recipe=small.toml", log, option) == 1
        error = capsys.readouterr().err
        assert "student learns from labelled images only" in error
        assert "send feedback to the service" in error
        assert option.rpartition("=")[2] in error
    assert small_run.root.exists()


def test_an_unknown_model_and_a_missing_log_are_named(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert small_run.root.exists()
    assert call("--recipe=small.toml", "--models=studnet") == 1
    assert "--models: there is no model 'studnet'; known: teacher, student; did you mean student?" in (
        capsys.readouterr().err
    )
    assert call("--recipe=small.toml", f"--request-log={tmp_path / 'nothing'}") == 1
    assert str(tmp_path / "nothing") in capsys.readouterr().err
