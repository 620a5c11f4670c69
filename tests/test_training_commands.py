"""`distillery-train` as a person uses it, on the sample digits."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image
from samples import sample_test, write_as_mnist

import distillery
from training import data
from training.__main__ import Evaluate, Train
from training.checkpoint import load_checkpoint
from training.pipeline import MODELS
from training.recipe import RECIPES, find_recipe

SMALL = [
    "--teacher.hidden=48,32",
    "--teacher.epochs=4",
    "--teacher.batch-size=50",
    "--teacher.learning-rate=0.01",
    "--student.hidden=24",
    "--student.epochs=4",
    "--student.batch-size=50",
    "--student.learning-rate=0.01",
    "--precision=float32",
    "--threads=1",
]


def call(*arguments: str | Path) -> int:
    commands: dict[str, type[distillery.Command]] = {"train": Train, "evaluate": Evaluate}
    return distillery.main(
        "distillery-train", commands, default="train", arguments=[str(a) for a in arguments]
    )


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name, digest in write_as_mnist(folder).items():
        monkeypatch.setitem(data.SHA256, name, digest)
    monkeypatch.setattr(data, "VALIDATION_DIGITS", 100)
    monkeypatch.setenv("DISTILLERY_DATA_DIR", str(folder))
    monkeypatch.setenv("DISTILLERY_OUT", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.usefixtures("mnist")
def test_train_then_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*SMALL) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if " epoch " in line and "/4" in line] == [
        name for name in MODELS for _ in range(4)
    ]
    run = tmp_path / "runs" / "quick"
    assert call("evaluate", "--recipe=quick") == 0
    evaluation = json.loads((run / "evaluation.json").read_text())
    test = sample_test()
    for name in MODELS:
        model = evaluation[name]
        network = load_checkpoint(run / name / "model.safetensors").network
        inputs = (test.images.flatten(1).double() / 255 - 0.1307) / 0.3081
        answers = network.double()(inputs).argmax(1)
        assert model["errors"] == int((answers != test.labels).sum()) == len(model["mistakes"])
        assert model["accuracy"] == pytest.approx(1 - model["errors"] / 200)
        confusion = torch.tensor(model["confusion"])
        assert confusion.sum(1).tolist() == [20] * 10  # one row for every label
        assert int(confusion.trace()) == 200 - model["errors"]
        sureness = [mistake["probability"] for mistake in model["mistakes"]]
        assert sureness == sorted(sureness, reverse=True)
        for mistake in model["mistakes"]:
            assert int(test.labels[mistake["index"]]) == mistake["label"] != mistake["answer"]
            assert int(answers[mistake["index"]]) == mistake["answer"]
        assert model["dataset"] == data.SHA256
        assert model["recipe"]["network"]["epochs"] == 4
        assert model["tools"]["torch"] == version("torch")
    assert evaluation["teacher"]["accuracy"] > 0.7
    pictures = {
        path.stem: Image.open(path).convert("L").getextrema() for path in (run / "pictures").iterdir()
    }
    assert pictures.keys() == {"digits", "soft_targets", "curves", "mistakes", "confusion"}
    assert all(darkest < 64 and lightest > 192 for darkest, lightest in pictures.values())


@pytest.mark.usefixtures("mnist")
@pytest.mark.slow
def test_nothing_is_evaluated_or_drawn_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(*SMALL) == 0
    run = tmp_path / "runs" / "quick"
    assert call("evaluate") == 0
    first = (run / "evaluation.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.delattr("training.__main__.load_test")  # whoever reads them again fails
        assert call("evaluate") == 0
    assert (run / "evaluation.json").read_bytes() == first
    (run / "pictures" / "mistakes.png").unlink()
    assert call("evaluate") == 0
    assert (run / "pictures" / "mistakes.png").exists()
    curves = run / "pictures" / "curves.png"
    drawn = curves.stat().st_mtime_ns
    assert call(*SMALL) == 0
    assert curves.stat().st_mtime_ns == drawn  # nothing new to draw
    for seed in (1, 0):  # pictures and evaluation are of the current models, also of those trained before
        assert call(*SMALL, f"--seed={seed}") == 0
        assert call("evaluate") == 0
        assert ((run / "evaluation.json").read_bytes() == first) == (seed == 0)
        assert curves.stat().st_mtime_ns > drawn
        drawn = curves.stat().st_mtime_ns


@pytest.mark.usefixtures("mnist")
def test_sanity_check_trains_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*SMALL, "--sanity-check") == 0
    assert capsys.readouterr().out.endswith("every network learns one batch by heart\n")
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("mnist")
def test_sanity_check_names_the_network_that_cannot_learn(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*SMALL, "--sanity-check", "--student.learning-rate=1e-9") == 1
    error = capsys.readouterr().err
    assert "student-alone errs on " in error
    assert "of the 64 digits it was trained on" in error
    assert "try another learning rate than 1e-09" in error


@pytest.mark.usefixtures("mnist")
def test_a_recipe_of_ones_own_gives_the_run_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text("seed = 7\n[teacher]\nhidden = [8]\nepochs = 1\n[student]\nhidden = [4]\nepochs = 9\n")
    assert call("--recipe", recipe, "--student.epochs=1", "--threads=1") == 0
    assert "models in" in capsys.readouterr().out
    card = load_checkpoint(tmp_path / "runs" / "tiny" / "student" / "model.safetensors").card
    assert (card["recipe"]["seed"], card["hidden"], card["recipe"]["network"]["epochs"]) == (7, [4], 1)


@pytest.mark.usefixtures("mnist")
def test_evaluation_of_nothing_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate") == 1
    assert "has no finished teacher; train it with distillery-train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--recipe=slow"], 1, "--recipe slow: there is no file"),
        (["--distillation.alpha=1.5"], 2, "less than or equal to 1 (found '1.5')"),
        (["--distillation.temperature=0"], 2, "greater than 0"),
        (["--student.hidden=0"], 2, "greater than 0"),
        (["--teacher.schedule=linear"], 2, "'one-cycle' or 'plateau'"),
        (["--device=cuda"], 1, "--device cuda: torch finds no CUDA device here; use --device cpu"),
    ],
)
def test_mistakes_are_told_in_a_line(
    flags: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--device=cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert call(*flags) == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_shipped_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILLERY_RECIPE", path.stem)
    train = Train()
    assert find_recipe(train.recipe) == path
    assert (train.teacher.hidden, train.student.hidden) == ([1200, 1200], [800, 800])


def test_the_notebook_recipe_is_the_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILLERY_RECIPE", "notebook")
    train = Train()
    assert (train.teacher.epochs, train.student.epochs) == (30, 100)
    assert (train.teacher.dropout, train.student.dropout) == (0.2, 0)  # 0.8 was the share to keep
    assert train.teacher.batch_size == train.student.batch_size == 64
    assert (train.distillation.temperature, train.distillation.alpha) == (20, 0.7)
    assert not train.teacher.augmentation.enabled
    assert not train.student.augmentation.enabled
