"""The feedback loop on a real service: traffic that the student is weak at, log, training, candidate, promotion."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

import distillery
from benchmarks.commands.loop import Loop, problems
from benchmarks.feedback.kinds import KINDS
from benchmarks.feedback.loop import copy_run, difference_interval, mixed, run_command
from benchmarks.load.digits import load_digits
from benchmarks.results.files import read_result

RECIPE = """
[teacher]
hidden = [400, 400]
epochs = 3
batch_size = 256
learning_rate = 3e-3

[student]
hidden = [256, 128]
epochs = 6
batch_size = 256
learning_rate = 3e-3
control = false
distillation = { temperature = 4, alpha = 0.5 }
"""
LOSS = 0.005
"""Largest loss of accuracy on MNIST, as the upper end of a 95 % interval."""
GAIN = 0.05
"""Smallest gain on turned digits, as the lower end of a 95 % interval: 0.12 was measured."""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_loop_improves_the_student_where_it_was_weak_and_loses_no_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = tmp_path / "small.toml", tmp_path / "runs" / "small"
    recipe.write_text(RECIPE)
    run_command("training", "--recipe", recipe, "--out", run.parent)
    run_command("export", "--run-dir", run, "--models-dir", tmp_path / "models", "--int8", "")
    arguments = ["--recipe", recipe, "--run-dir", run, "--models-dir", tmp_path / "models"]
    arguments += [
        "--traffic",
        "tilted",
        "--model",
        "student",
        "--images",
        2000,
        "--feedback",
        0.6,
        "--margin",
        LOSS,
    ]
    arguments += ["--results-dir", tmp_path]
    assert distillery.main("bench", {"loop": Loop}, arguments=["loop", *map(str, arguments)]) == 0
    output = capsys.readouterr().out
    (path,) = tmp_path.glob("loop-*.json")
    data = read_result(path)["data"]
    tilted, mnist = data["rows"]
    assert tilted["gain_interval_95"][0] > GAIN
    assert tilted["p"] < 1e-6
    assert mnist["gain_interval_95"][0] > -LOSS
    assert data["failed"] == 0
    assert data["requests"] > 1200
    assert data["decision"]["by"] == "rule"
    assert "0 failed" in output
    assert json.loads(output.splitlines()[-1])["failed"] == 0
    # The repository and the run are those from before.
    assert [path.name for path in (tmp_path / "models" / "student").glob("[1-9]")] == ["1"]


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_change_every_digit_and_depend_on_the_seed_alone(kind: str) -> None:
    digits = load_digits()
    drawn = KINDS[kind].draw(digits, 1)
    assert (drawn.dtype, drawn.shape) == (np.uint8, digits.shape)
    assert (drawn != digits).any(axis=(1, 2)).all()
    assert np.array_equal(drawn, KINDS[kind].draw(digits, 1))


def test_the_interval_of_a_gain_is_that_of_matched_proportions() -> None:
    low, high = difference_interval(60, 20, 1000)
    assert low < 0.04 < high
    # For many images it is Wald's interval of the difference of two matched proportions.
    half = norm.ppf(0.975) * ((60 + 20 - 40**2 / 1000) ** 0.5) / 1000
    assert (high - low) / 2 == pytest.approx(half, rel=0.02)
    assert difference_interval(0, 0, 10_000)[0] > -0.001


def test_problems_are_what_was_not_achieved() -> None:
    kind = {"images_of": "ruled", "gain_interval_95": [0.02, 0.03]}
    mnist = {"images_of": "MNIST", "gain_interval_95": [-0.002, 0.001]}
    assert problems([kind, mnist], 0, 0.003) == []
    assert len(problems([kind | {"gain_interval_95": [-0.01, 0.03]}, mnist], 2, 0.001)) == 3


def test_images_and_labels_are_mixed_alike() -> None:
    digits = load_digits()
    labels = np.arange(100)
    images, mixed_labels = mixed([(digits[:50], labels[:50]), (digits[50:], labels[50:])], 0)
    assert sorted(mixed_labels.tolist()) == list(range(100))
    assert all(np.array_equal(images[place], digits[label]) for place, label in enumerate(mixed_labels))


def test_a_run_is_copied_without_its_caches(tmp_path: Path) -> None:
    model = tmp_path / "run" / "teacher-0123abcd"
    (model / "soft-targets-1").mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "run" / "teacher").symlink_to("teacher-0123abcd")
    copy_run(tmp_path / "run", tmp_path / "copy")
    assert (tmp_path / "copy" / "teacher" / "model.safetensors").read_bytes() == b"weights"
    assert not (tmp_path / "copy" / "teacher" / "soft-targets-1").exists()


def test_an_unknown_kind_or_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "models" / "student" / "1").mkdir(parents=True)
    common = ["loop", f"--models-dir={tmp_path / 'models'}", f"--results-dir={tmp_path}"]
    assert distillery.main("bench", {"loop": Loop}, arguments=[*common, "--traffic=felts"]) == 1
    assert "did you mean felt?" in capsys.readouterr().err
    assert distillery.main("bench", {"loop": Loop}, arguments=[*common, "--model=fast"]) == 1
    assert "--model: " in (error := capsys.readouterr().err)
    assert "known: student" in error
