"""Training is a function of the recipe and the seed, and can be resumed after every epoch."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.training.trainings import (
    BOUNDED,
    CONVOLUTIONAL,
    DIGITS,
    DROPPING,
    ENSEMBLE,
    FALLING,
    FEW,
    JITTERED,
    RECURRING,
    SMALL,
    Recorder,
    facts,
    new,
    same,
    taught,
    train,
)
from training.loop.device import Device
from training.loop.trainer import Job, Training, limit_norms, predict
from training.model.checkpoint import load_tensors, save_tensors
from training.model.network import Classifier, Ensemble, Network, build
from training.recipe.schema import Distillation, LossName, Model


@pytest.fixture(scope="module")
def teacher() -> Network:
    return train(new(SMALL, name="teacher")).network


@pytest.fixture(scope="module")
def ensemble() -> Network:
    return train(new(ENSEMBLE, name="teacher", digits=FEW), epochs=1).network


def test_a_network_learns() -> None:
    training = train(new(SMALL))
    assert training.selected_record["validation_accuracy"] > 0.5  # 0.75 to 0.88 over seeds, 0.1 by chance
    assert training.history[-1]["accuracy"] > training.history[0]["accuracy"]
    assert [record["epoch"] for record in training.history] == [1, 2, 3, 4]


@pytest.mark.parametrize("model", [SMALL, JITTERED, DROPPING, ENSEMBLE])
def test_equal_seeds_give_equal_weights(model: Model) -> None:
    runs = [train(new(model, seed=seed, digits=FEW), epochs=2) for seed in (5, 5, 6)]
    assert same(runs[0].network.state_dict(), runs[1].network.state_dict())
    assert not same(runs[0].network.state_dict(), runs[2].network.state_dict())


@pytest.mark.parametrize(
    "model",
    [
        SMALL,
        DROPPING,
        JITTERED,
        BOUNDED,
        FALLING,
        CONVOLUTIONAL,
        ENSEMBLE,
        taught(SMALL),
        taught(RECURRING),
        taught(ENSEMBLE),
    ],
)
def test_an_epoch_after_a_resume_is_the_epoch_without_one(
    ensemble: Network, model: Model, tmp_path: Path
) -> None:
    teacher = ensemble if model.distillation else None
    training = new(model, teacher=teacher, digits=FEW)
    for epoch in range(3):
        save_tensors(tmp_path / f"state-{epoch}", *training.state())
        train(training, epochs=epoch + 1)
        torch.rand(7)  # the random numbers of the process are no part of the state
        resumed = new(model, teacher=teacher, digits=FEW)
        resumed.restore(*load_tensors(tmp_path / f"state-{epoch}"))
        assert len(resumed.history) == epoch
        train(resumed, epochs=epoch + 1)
        (expected, past), (found, resumed_past) = training.state(), resumed.state()
        assert same(expected, found)
        assert facts(past["history"]) == facts(resumed_past["history"])


@pytest.mark.parametrize("model", [SMALL, RECURRING, DROPPING, FALLING, ENSEMBLE])
def test_a_student_and_its_control_differ_only_by_distillation(model: Model, teacher: Network) -> None:
    alone = new(model, name="student-alone", digits=FEW)
    learning = taught(model, Distillation(temperature=20, alpha=0))
    distilled = new(learning, name="student", teacher=teacher, digits=FEW)
    assert same(alone.network.state_dict(), distilled.network.state_dict())
    # With alpha = 0 they stay equal: the same digits in the same order.
    assert same(train(alone).network.state_dict(), train(distilled).network.state_dict())


def test_distillation_brings_the_student_close_to_its_teacher(teacher: Network) -> None:
    longer = SMALL.model_copy(update={"epochs": 30})
    distilled = train(new(taught(longer, Distillation(temperature=4, alpha=1)), seed=1, teacher=teacher))
    alone = train(new(longer, seed=1))
    images = DIGITS[1].images
    wanted = torch.softmax(predict(teacher, images) / 4, 1)
    distances = [
        (torch.softmax(predict(training.network, images) / 4, 1) - wanted).abs().sum(1).mean()
        for training in (distilled, alone)
    ]
    assert distances[0] < 0.5 * distances[1]


@pytest.mark.parametrize("loss", [None, "kl", "dist"])
def test_the_members_of_an_ensemble_train_independently(teacher: Network, loss: LossName | None) -> None:
    one = CONVOLUTIONAL.model_copy(update={"max_norm": 0.3})
    if loss:
        one = taught(one, Distillation(loss=loss, temperature=3, alpha=0.7))
    own_teacher = teacher if loss else None
    together = new(one.model_copy(update={"members": 3}), teacher=own_teacher, digits=FEW)
    assert isinstance(together.network, Ensemble)
    alone = [new(one, teacher=own_teacher, digits=FEW) for _ in together.network.members]
    for training, member in zip(alone, together.network.members, strict=True):
        training.network.load_state_dict(member.state_dict())
    for training in (together, *alone):
        train(training, epochs=1)
    for training, member in zip(alone, together.network.members, strict=True):
        assert same(member.state_dict(), training.network.state_dict())
    for figure in ("loss", "accuracy"):  # of an ensemble: the mean of its members
        values = [training.history[0][figure] for training in alone]
        assert together.history[0][figure] == pytest.approx(sum(values) / 3, rel=1e-5)
        assert len(set(values)) > 1


def validate_as(training: Training, losses: list[float], errors: list[int] | None = None) -> None:
    """Give `training` these validation losses and errors, whatever its network has learned by then."""
    figures = zip(losses, errors or [round(100 * loss) for loss in losses], strict=True)
    records = [{"validation_loss": loss, "validation_errors": count} for loss, count in figures]
    training.validate = lambda: records[len(training.history)]  # type: ignore[method-assign]


def weights_after_each_epoch(training: Training) -> list[dict[str, Tensor]]:
    found = []
    while not training.done:
        train(training, epochs=len(training.history) + 1)
        found.append({name: value.clone() for name, value in training.network.state_dict().items()})
    return found


@pytest.mark.parametrize(
    ("keep", "losses", "errors", "selected"),
    [
        ("best", [0.5, 0.4, 0.6, 0.7], [9, 7, 8, 9], 2),
        ("best", [0.5, 0.4, 0.3, 0.7], [9, 7, 7, 8], 3),  # equal errors: the lower loss
        ("best", [0.5, 0.2, 0.3, 0.1], [6, 7, 7, 8], 1),  # errors decide before the loss
        ("last", [0.5, 0.4, 0.6, 0.7], [9, 7, 8, 9], 4),
    ],
)
def test_the_checkpoint_holds_the_weights_of_the_selected_epoch(
    keep: str, losses: list[float], errors: list[int], selected: int
) -> None:
    training = new(SMALL.model_copy(update={"keep": keep}), digits=FEW)
    validate_as(training, losses, errors)
    weights = weights_after_each_epoch(training)
    assert training.selected_record["epoch"] == selected
    assert [same(training.selected, each) for each in weights] == [n == selected for n in range(1, 5)]


def test_a_plateau_lowers_the_rate_and_restores_the_best_weights() -> None:
    training = new(FALLING.model_copy(update={"epochs": 6}))
    validate_as(training, [0.5, 0.4, 0.45, 0.3, 0.35, 0.2])
    weights = weights_after_each_epoch(training)
    # The rate falls after each epoch that is no better than the best before it: the third and the fifth.
    rates = [record["learning_rate"] for record in training.history]
    assert rates == pytest.approx([0.3, 0.3, 0.3, 0.03, 0.03, 0.003])
    assert same(weights[2], weights[1])
    assert same(weights[4], weights[3])
    assert same(training.selected, weights[5])


@pytest.mark.parametrize("model", [SMALL, ENSEMBLE])
def test_reported_figures_cover_every_digit_once(model: Model) -> None:
    training, observer = new(model, digits=FEW), Recorder()
    training.train_epoch(observer)
    assert observer.figures[-1]["progress"] == 1
    assert observer.figures[-1]["loss"] == training.history[0]["loss"]
    assert round(training.history[0]["accuracy"] * len(FEW[0]) * model.members, 6) % 1 == 0


def test_classes_left_out_are_neither_trained_on_nor_predicted(teacher: Network) -> None:
    model = taught(SMALL.model_copy(update={"leave_out": [3, 7]}), Distillation(alpha=0.1))
    training = new(model, teacher=teacher)
    assert training.digits.labels.bincount().tolist() == [50, 50, 50, 0, 50, 50, 50, 0, 50, 50]
    answers = predict(train(training).network, DIGITS[1].images).argmax(1)
    assert not torch.isin(answers, torch.tensor([3, 7])).any()
    right = answers == DIGITS[1].labels
    assert (
        right[~torch.isin(DIGITS[1].labels, torch.tensor([3, 7]))].float().mean() > 0.5
    )  # 0.82 to 0.9 over seeds


def test_the_norms_of_incoming_weights_are_limited() -> None:
    network = Classifier([2, 2], stages=[[2]])
    for weight in network.parameters():
        torch.nn.init.ones_(weight)
    weight = network.hidden[1].linear.weight
    with torch.no_grad():
        weight.copy_(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    limit_norms(network, 1)
    torch.testing.assert_close(weight, torch.tensor([[0.6, 0.8], [0.3, 0.4]]))
    assert network.hidden[0].linear.weight.norm(dim=1).tolist() == pytest.approx([1, 1])
    for kept in (network.output.weight, network.convolutions[0].conv.weight):
        assert torch.equal(kept, torch.ones_like(kept))


def test_norms_are_limited_after_every_step() -> None:
    free, bounded = (train(new(SMALL.model_copy(update={"max_norm": m}))).network for m in (0, 0.5))
    for layer, limited in ((free.hidden[0], False), (bounded.hidden[0], True)):
        assert (layer.linear.weight.norm(dim=1).max() <= 0.5 * (1 + 1e-6)) == limited


def test_bfloat16_is_close_to_float32() -> None:
    for model in (SMALL, ENSEMBLE):
        job = Job("teacher", model.model_copy(update={"epochs": 1}), 0)
        exact, quick = (train(Training(job, *FEW, device=Device("cpu", bfloat16=b))) for b in (False, True))
        assert quick.history[0]["loss"] == pytest.approx(exact.history[0]["loss"], rel=0.02)
        assert all(value.dtype in (torch.float32, torch.int64) for value in quick.selected.values())


def test_a_teacher_is_required_with_a_distillation_and_only_then() -> None:
    for model, teacher in ((taught(SMALL), None), (SMALL, build(SMALL))):
        with pytest.raises(
            ValueError, match="student: a teacher is required with a distillation, and only then"
        ):
            new(model, teacher=teacher)


def test_training_does_not_import_torchs_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)  # importing it fails
    training = train(new(SMALL, digits=FEW), epochs=1)
    training.restore(*training.state())
    assert len(train(training, epochs=2).history) == 2
