"""`distillery-train` and `evaluate` on the sample digits."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.support.training.samples import sample_test
from tests.training.conftest import SmallRun, call
from training.model.checkpoint import load_checkpoint

MODELS = ("teacher", "student-alone", "student")


def test_training_prints_the_last_epoch_and_the_result_of_every_model(trained_run: SmallRun) -> None:
    lines = trained_run.output.splitlines()  # of two seeds
    assert [line.split()[0] for line in lines if "epoch 4/4" in line] == 2 * list(MODELS)
    assert [line.split()[0] for line in lines if "validation errors at epoch" in line] == 2 * list(MODELS)


def test_evaluation_counts_the_errors_of_every_checkpoint(trained_run: SmallRun) -> None:
    evaluation = json.loads((trained_run.root / "evaluation.json").read_text())
    assert evaluation.keys() == set(MODELS)
    test = sample_test()
    for name, model in evaluation.items():
        network = load_checkpoint(trained_run.root / name / "model.safetensors").network
        inputs = (test.images.flatten(1).double() / 255 - 0.1307) / 0.3081
        predicted = network.double()(inputs).argmax(1)
        assert model["errors"] == int((predicted != test.labels).sum()) == len(model["misclassified"])
        assert model["accuracy"] == pytest.approx(1 - model["errors"] / 200)
        confusion = torch.tensor(model["confusion"])
        assert confusion.sum(1).tolist() == [20] * 10  # a row per label
        assert int(confusion.trace()) == 200 - model["errors"]
        confidences = [digit["probability"] for digit in model["misclassified"]]
        assert confidences == sorted(confidences, reverse=True)
        for digit in model["misclassified"]:
            assert int(test.labels[digit["index"]]) == digit["label"] != digit["prediction"]
            assert int(predicted[digit["index"]]) == digit["prediction"]
        assert model["recipe"]["model"]["epochs"] == 4
        assert model["tools"]["torch"] == version("torch")
    assert evaluation["teacher"]["accuracy"] > 0.4  # 0.1 by chance


def test_figures_are_drawn_after_training_and_evaluation(trained_run: SmallRun) -> None:
    figures = {
        path.stem: Image.open(path).convert("L").getextrema()
        for path in (trained_run.root / "figures").iterdir()
    }
    assert {"digits", "soft_targets", "curves", "errors", "confusion"} <= figures.keys()
    assert all(darkest < 64 and lightest > 192 for darkest, lightest in figures.values())


def test_a_second_call_neither_trains_evaluates_nor_draws(
    small_run: SmallRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dates() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in small_run.root.rglob("[!.]*.*")}

    before = dates()
    assert call("--recipe=small.toml") == 0
    assert capsys.readouterr().out.count("trained before") == 3
    with monkeypatch.context() as patch:
        patch.delattr("training.commands.evaluate.load_test")  # reading the test digits again fails
        assert call("evaluate", "--recipe=small.toml") == 0
    assert dates() == before


@pytest.mark.slow
def test_another_seed_becomes_the_current_one_and_is_evaluated(small_run: SmallRun) -> None:
    file, curves = small_run.root / "evaluation.json", small_run.root / "figures" / "curves.png"
    before, drawn = file.read_bytes(), curves.stat().st_mtime_ns
    for seed in (1, 0):
        assert call("--recipe=small.toml", f"--seed={seed}") == 0
        assert call("evaluate", "--recipe=small.toml") == 0
        assert (file.read_bytes() == before) == (seed == 0)
        assert curves.stat().st_mtime_ns > drawn
        drawn = curves.stat().st_mtime_ns


def test_evaluate_prints_a_table_of_the_run(small_run: SmallRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", "--recipe=small.toml") == 0
    table = " ".join(capsys.readouterr().out.split())
    assert "student-alone" in table
    assert f"{small_run.root}, 200 test" in table


@pytest.mark.usefixtures("mnist")
def test_sanity_check_trains_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.toml").write_text("[one]\nhidden = [16]\nlearning_rate = 1e-2\n")
    assert call("--recipe=one.toml", "--sanity-check") == 0
    assert capsys.readouterr().out.endswith("every network overfits one batch\n")
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("mnist")
def test_sanity_check_names_the_network_that_cannot_learn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.toml").write_text("[one]\nhidden = [16]\nlearning_rate = 1e-9\n")
    assert call("--recipe=one.toml", "--sanity-check") == 1
    assert "distillery-train: one" in (error := capsys.readouterr().err)
    assert "64 digits" in error
    assert "1e-09" in error


OWN = """
seed = 7
[cnn]
stages = [[3]]
members = 2
epochs = 1
augmentation = { shift = 1 }
[tiny]
hidden = [4]
epochs = 9
[tiny.distillation]
teacher = "cnn"
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    recipe = tmp_path / "own.toml"
    recipe.write_text(OWN)
    return recipe


@pytest.mark.usefixtures("mnist")
def test_a_user_recipe_is_trained_with_its_options_and_resumes_without_a_damaged_teacher(
    tmp_path: Path, own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILLERY_TINY__DISTILLATION__TEMPERATURE", "3")
    arguments = ["--recipe", own, "--tiny.epochs=1", "--tiny.distillation.alpha=0.9"]
    assert call(*arguments) == 0
    root = tmp_path / "runs" / "own"
    checkpoints = {name: root / name / "model.safetensors" for name in ("tiny", "tiny-alone")}
    card = load_checkpoint(checkpoints["tiny"]).metadata
    model = card["recipe"]["model"]
    assert (card["recipe"]["seed"], model["hidden"], model["epochs"]) == (7, [4], 1)
    assert {key: model["distillation"][key] for key in ("teacher", "temperature", "alpha")} == {
        "teacher": "cnn",
        "temperature": 3,
        "alpha": 0.9,
    }

    before = {name: path.read_bytes() for name, path in checkpoints.items()}
    teacher = (root / "cnn" / "model.safetensors").resolve()
    teacher.write_bytes(teacher.read_bytes()[:1000])
    capsys.readouterr()
    assert call(*arguments) == 1
    error = capsys.readouterr().err
    assert teacher.name in error
    assert "delete it and train again" in error
    assert {name: path.read_bytes() for name, path in checkpoints.items()} == before
    teacher.unlink()
    assert call(*arguments) == 0
    assert capsys.readouterr().out.count("trained before") == 2


def test_help_lists_the_options_of_the_recipes_models(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--recipe", own, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--MODEL.stages [[N,...],...] channels of the 3x3 convolutions" in text
    assert "--MODEL.epochs N passes over the training digits (default: 20)" in text
    assert "MODEL in cnn," in text
    assert "cnn: stages=[[3]]" in text
    assert "epochs=9" in text
    assert "distillation.teacher=cnn" in text


@pytest.mark.usefixtures("mnist")
def test_evaluating_an_untrained_run_names_the_command_that_trains(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("evaluate") == 1
    assert "has no finished teacher; train it with distillery-train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (
            ["--recipe=quik"],
            1,
            "distillery-train: --recipe quik: there is no recipe 'quik'; known: assistant, best",
        ),
        (["--recipe=quick", "--recipe", "quik"], 1, "did you mean quick?"),
        (
            ["evaluate", "--recipe=quik"],
            1,
            "distillery-train evaluate: --recipe quik: there is no recipe 'quik'",
        ),
        (["--recipe=slow.toml"], 1, "distillery-train: --recipe slow.toml: there is no file slow.toml"),
        (["--student.distillation.alpha=1.5"], 2, "less than or equal to 1 (found '1.5')"),
        (
            ["--student.distillation.temperature=0"],
            2,
            "temperature: Input should be greater than 0 (found '0')",
        ),
        (["--student.hidden=0"], 2, "greater than 0"),
        (["--student.distillation.loss=l2"], 2, "loss: Input should be 'kl', 'mse', 'dkd', 'lskd' or 'dist'"),
        (["--teacher.schedule=linear"], 2, "'one-cycle' or 'plateau'"),
        (["--teacher.schedule=plateau", "--teacher.keep=last"], 2, 'keep = "last" requires one-cycle'),
        (
            ["--student.distillation.teacher=cnn"],
            2,
            "distillery-train: student learns from 'cnn', which must be a model above it: teacher\n",
        ),
        (["--seed=-1"], 2, "seed: Input should be greater than or equal to 0 (found '-1')"),
    ],
)
def test_invalid_settings_are_reported_in_one_line(
    flags: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*flags) == status
    assert message in capsys.readouterr().err


def test_a_missing_cuda_device_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # machines with a device run this test too
    assert call("--device=cuda") == 1
    error = capsys.readouterr().err
    assert error == "distillery-train: --device cuda: torch finds no CUDA device; use --device cpu\n"


@pytest.mark.parametrize("name", ["seed", "recipe", "threads", "run", "resolved", "root"])
def test_a_model_cannot_have_the_name_of_an_option(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(f"[{name}]\nhidden = [4]\n")
    assert call("--recipe", recipe) == 1
    assert f"mine.toml: [{name}] is the name of an option; rename the model" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--cnn.epochs=3"], ["--distillation.alpha=0.5"], ["--student.epoch=3"]])
def test_an_option_of_an_unknown_model_is_rejected(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*flags) == 2
    assert f"there is no option {flags[0].partition('=')[0]}" in capsys.readouterr().err
