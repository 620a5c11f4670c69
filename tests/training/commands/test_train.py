"""`distillery-train` as a person uses it, on the sample digits."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image

import distillery
from tests.support.samples import sample_test, write_as_mnist
from training.commands.evaluate import Evaluate
from training.commands.train import Train
from training.data import mnist as data
from training.model.checkpoint import load_checkpoint

MODELS = ("teacher", "student-alone", "student")
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
        assert model["recipe"]["model"]["epochs"] == 4
        assert model["tools"]["torch"] == version("torch")
    assert evaluation["teacher"]["accuracy"] > 0.4  # 0.1 by chance
    pictures = {path.stem: Image.open(path).convert("L").getextrema() for path in (run / "figures").iterdir()}
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
        patch.delattr("training.commands.evaluate.load_test")  # whoever reads them again fails
        assert call("evaluate") == 0
    assert (run / "evaluation.json").read_bytes() == first
    (run / "figures" / "mistakes.png").unlink()
    assert call("evaluate") == 0
    assert (run / "figures" / "mistakes.png").exists()
    curves = run / "figures" / "curves.png"
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
def test_a_recipe_of_ones_own_trains_its_models(
    tmp_path: Path, own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILLERY_TINY__DISTILLATION__TEMPERATURE", "3")
    assert call("--recipe", own, "--tiny.epochs=1", "--tiny.distillation.alpha=0.9", "--threads=1") == 0
    assert "models in" in capsys.readouterr().out
    run = tmp_path / "runs" / "own"
    card = load_checkpoint(run / "tiny" / "model.safetensors").card
    model = card["recipe"]["model"]
    assert (card["recipe"]["seed"], model["hidden"], model["epochs"]) == (7, [4], 1)
    assert {key: model["distillation"][key] for key in ("teacher", "temperature", "alpha")} == {
        "teacher": "cnn",
        "temperature": 3,
        "alpha": 0.9,
    }
    assert call("evaluate", "--recipe", own) == 0
    assert json.loads((run / "evaluation.json").read_text()).keys() == {"cnn", "tiny-alone", "tiny"}
    table = " ".join(capsys.readouterr().out.split())
    assert "tiny-alone" in table
    assert "runs/own, 200 test" in table


@pytest.mark.usefixtures("mnist")
def test_a_broken_teacher_is_told_and_no_other_model_is_lost(
    tmp_path: Path, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--tiny.epochs=1", "--threads=1"]
    assert call("--recipe", own, *flags) == 0
    checkpoints = {
        name: tmp_path / "runs/own" / name / "model.safetensors" for name in ("tiny", "tiny-alone")
    }
    before = {name: path.read_bytes() for name, path in checkpoints.items()}
    teacher = (tmp_path / "runs/own/cnn/model.safetensors").resolve()
    teacher.write_bytes(teacher.read_bytes()[:1000])
    capsys.readouterr()
    assert call("--recipe", own, *flags) == 1
    error = capsys.readouterr().err
    assert f"{teacher.name} is cut short" in error
    assert "delete it and train again" in error
    assert {name: path.read_bytes() for name, path in checkpoints.items()} == before
    teacher.unlink()
    assert call("--recipe", own, *flags) == 0
    assert capsys.readouterr().out.count("trained before") == 2


def test_help_lists_the_flags_of_the_recipe_and_their_values(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--recipe", own, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--MODEL.stages [[N,...],...] channels of the 3x3 convolutions" in text
    assert "--MODEL.epochs N passes over the training digits (default: 20)" in text
    assert "MODEL in cnn," in text
    assert "cnn: stages=[[3]]" in text
    assert "epochs=9" in text
    assert "distillation.teacher=cnn" in text


@pytest.mark.usefixtures("mnist")
def test_evaluation_of_nothing_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate") == 1
    assert "has no finished teacher; train it with distillery-train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--recipe=slow"], 1, "distillery-train: --recipe slow: there is no file"),
        (["--recipe=quick", "--recipe", "slow"], 1, "distillery-train: --recipe slow: there is no file"),
        (["evaluate", "--recipe=slow"], 1, "distillery-train evaluate: --recipe slow: there is no file"),
        (["--student.distillation.alpha=1.5"], 2, "less than or equal to 1 (found '1.5')"),
        (
            ["--student.distillation.temperature=0"],
            2,
            "temperature: Input should be greater than 0 (found '0')",
        ),
        (["--student.hidden=0"], 2, "greater than 0"),
        (["--student.distillation.loss=l2"], 2, "loss: Input should be 'kl', 'mse', 'dkd', 'lskd' or 'dist'"),
        (["--teacher.schedule=linear"], 2, "'one-cycle' or 'plateau'"),
        (["--teacher.schedule=plateau", "--teacher.keep=last"], 2, 'keep = "last" wants one-cycle'),
        (
            ["--student.distillation.teacher=cnn"],
            2,
            "distillery-train: student learns from 'cnn', which is none of the models above it: teacher\n",
        ),
        (["--seed=-1"], 2, "seed: Input should be greater than or equal to 0 (found '-1')"),
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


@pytest.mark.parametrize("name", ["seed", "recipe", "threads", "run", "settled", "figures"])
def test_a_model_cannot_have_the_name_of_a_setting(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(f"[{name}]\nhidden = [4]\n")
    assert call("--recipe", recipe) == 1
    assert f"mine.toml: [{name}] is taken; give the model another name" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--cnn.epochs=3"], ["--distillation.alpha=0.5"], ["--student.epoch=3"]])
def test_a_flag_of_a_model_that_is_not_in_the_recipe_is_refused(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*flags) == 2
    assert f"there is no option {flags[0].partition('=')[0]}" in capsys.readouterr().err
