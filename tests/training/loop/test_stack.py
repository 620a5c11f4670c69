"""A stack of seeds trains what the seeds train one after the other, and goes on after any end.

What is compared, and why: see tests/training/loop/test_distributed.py.
"""

from pathlib import Path

import pytest
import torch

from tests.support.samples import sample_training
from tests.support.trainings import CPU, SMALL, taught, train
from training.commands.progress import TrainingProgress
from training.loop.soft_targets import SoftTargets
from training.loop.stack import Stack, stackable
from training.loop.trainer import Job, Observer, Training
from training.model.checkpoint import load_tensors, save_tensors
from training.model.network import Classifier
from training.recipe.schema import Augmentation, Distillation, Model, Recipe
from training.runs.folder import ModelRun
from training.runs.pipeline import DataSet, train_recipe

DIGITS = sample_training()
torch.manual_seed(0)
TEACHER = Classifier([20])
STUDENT = taught(SMALL, Distillation(temperature=4, loss="dist")).model_copy(
    update={"augmentation": Augmentation(shift=2)}
)
SEEDS = (3, 4, 5)


def trainings(model: Model) -> list[Training]:
    asked = [SoftTargets(TEACHER, CPU) if model.distillation else None for _ in SEEDS]
    return [
        Training(Job("student", model, seed), *DIGITS, device=CPU, teacher=teacher)
        for seed, teacher in zip(SEEDS, asked, strict=True)
    ]


def train_stack(members: list[Training], *, epochs: int = 99) -> list[Training]:
    stack = Stack(members)
    while not members[0].done and len(members[0].history) < epochs:
        stack.train_epoch(Observer())
    return members


@pytest.mark.parametrize("model", [SMALL, STUDENT], ids=["alone", "distilled"])
def test_gradients_and_statistics_are_those_of_each_seed(model: Model) -> None:
    one_step = model.model_copy(update={"batch_size": 500, "epochs": 1})
    for stacked, alone in zip(train_stack(trainings(one_step)), trainings(one_step), strict=True):
        train(alone)
        theirs, facts = alone.state()
        ours, our_facts = stacked.state()
        assert ours.keys() == theirs.keys()
        for key in ours:
            if key.endswith((".exp_avg", "running_mean", "running_var", "num_batches_tracked", ".step")):
                difference = (ours[key] - theirs[key]).double().norm().item()
                assert difference <= 1e-4 * theirs[key].double().norm().item() + 1e-6, key
        for name in ("loss", "accuracy", "learning_rate"):
            assert our_facts["history"][0][name] == pytest.approx(facts["history"][0][name], rel=1e-5)


@pytest.mark.parametrize("model", [SMALL, STUDENT], ids=["alone", "distilled"])
def test_each_seed_learns_as_it_does_alone(model: Model) -> None:
    for stacked, alone in zip(train_stack(trainings(model)), trainings(model), strict=True):
        train(alone)
        assert [record["loss"] for record in stacked.history] == pytest.approx(
            [record["loss"] for record in alone.history], rel=0.02
        )
        errors = [training.kept_record["validation_errors"] for training in (stacked, alone)]
        assert errors[0] == pytest.approx(errors[1], abs=5)  # of 100


def test_a_stack_goes_on_from_states_kept_by_each_seed(tmp_path: Path) -> None:
    expected = train_stack(trainings(STUDENT))
    first, second = train_stack(trainings(STUDENT), epochs=2), trainings(STUDENT)
    for stopped, going_on, seed in zip(first, second, SEEDS, strict=True):
        save_tensors(tmp_path / str(seed), *stopped.state())
        going_on.restore(*load_tensors(tmp_path / str(seed)))
    for ours, theirs in zip(train_stack(second), expected, strict=True):
        tensors, _ = theirs.state()
        assert all(torch.equal(value, tensors[name]) for name, value in ours.state()[0].items())


RECIPE = Recipe(
    name="small",
    models={
        "teacher": Model(hidden=[24], epochs=2, batch_size=100, dropout=0.1),
        "student": Model(hidden=[16], epochs=3, batch_size=100, distillation=Distillation(temperature=4)),
    },
)


def train_seeds(root: Path, seed: int, *others: int) -> dict[str, Path]:
    data = DataSet(*DIGITS, {"sample": "1"})
    recipe = RECIPE.model_copy(update={"seed": seed})
    with TrainingProgress() as progress:
        runs = train_recipe(recipe, data, device=CPU, root=root, observer=progress, seeds=others)
    return {name: run.checkpoint for name, run in runs.items()}


def test_a_recipe_of_several_seeds_is_found_by_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    current = train_seeds(tmp_path, 0, 1, 2)
    assert (tmp_path / "student").resolve() == current["student"].parent
    assert not list(tmp_path.glob("*/state.safetensors"))
    capsys.readouterr()
    for seed in (0, 1, 2):
        train_seeds(tmp_path, seed)
    assert capsys.readouterr().out.count("trained before") == 3 * 3


class Crash(BaseException):
    """The end of the process, for a test that stays in it."""


def test_a_crash_between_the_files_of_an_epoch_does_no_harm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = ModelRun.save, []

    def crash(run: ModelRun, training: Training) -> None:
        if run.name == "student" and len(saved) == 4:  # the first epoch of all three, the second of one
            raise Crash
        save(run, training)
        saved.extend([run] if run.name == "student" else [])

    with monkeypatch.context() as patch:
        patch.setattr(ModelRun, "save", crash)
        with pytest.raises(Crash):
            train_seeds(tmp_path / "crashed", 0, 1, 2)
    again = train_seeds(tmp_path / "crashed", 0, 1, 2)
    assert "student: resumed after epoch 2" in capsys.readouterr().out
    expected = train_seeds(tmp_path / "whole", 0, 1, 2)
    tensors, _ = load_tensors(expected["student"])
    # This seed was the one that had been saved; the others' second epoch was done anew, each by itself.
    assert all(torch.equal(value, tensors[name]) for name, value in load_tensors(again["student"])[0].items())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"hidden": [256, 128]}, True),
        ({"hidden": [800, 800]}, False),
        ({"stages": [[4]]}, False),
        ({"members": 2}, False),
        ({"dropout": 0.1}, False),
        ({"norm": False}, False),
        ({"schedule": "plateau"}, False),
        ({"max_norm": 2}, False),
        ({"quantised_from": "teacher"}, False),
    ],
)
def test_what_is_stacked(change: dict[str, object], expected: bool) -> None:
    assert stackable(Model(hidden=[48, 32]).model_copy(update=change)) == expected
