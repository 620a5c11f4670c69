"""Training is a function of the recipe and the seed, and can be stopped between any two epochs."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from samples import sample_training
from torch import Tensor

from training.data import Digits
from training.device import Device
from training.loop import Job, Record, Training, predict
from training.network import MLP
from training.recipe import Augmentation, Distillation, Network

CPU = Device("cpu", bfloat16=False)
SMALL = Network(hidden=[32, 24], epochs=4, batch_size=64, learning_rate=1e-2)
SOFT = Distillation(temperature=4, alpha=0.7)
JITTERED = SMALL.model_copy(update={"augmentation": Augmentation(shift=2, rotation=10)})
DROPPING = SMALL.model_copy(update={"dropout": 0.3})
FALLING = SMALL.model_copy(update={"schedule": "plateau", "patience": 0, "learning_rate": 0.3, "epochs": 8})


class Silence:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Record] = []

    def started(self, job: Job, *, epochs_done: int) -> None:
        pass

    def advanced(self, job: Job, *, progress: float, figures: Record) -> None:  # noqa: ARG002
        self.told.append(figures | {"progress": progress})

    def finished_epoch(self, job: Job, record: Record) -> None:
        pass


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small do not gain from threads, and suffer from them on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits() -> tuple[Digits, Digits]:
    return sample_training()


@pytest.fixture(scope="module")
def teacher(digits: tuple[Digits, Digits]) -> MLP:
    training = Training(Job("teacher", SMALL, 0), *digits, device=CPU)
    train(training)
    return training.network


def train(training: Training, *, epochs: int = 99) -> Training:
    while not training.done and len(training.history) < epochs:
        training.train_epoch(Silence())
    return training


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def facts(history: list[Record]) -> list[Record]:
    return [
        {k: v for k, v in record.items() if k not in ("seconds", "images_per_second")} for record in history
    ]


def test_it_learns(digits: tuple[Digits, Digits]) -> None:
    training = train(Training(Job("teacher", SMALL, 0), *digits, device=CPU))
    assert training.best_record["validation_accuracy"] > 0.8
    assert training.history[-1]["accuracy"] > training.history[0]["accuracy"]
    assert [record["epoch"] for record in training.history] == [1, 2, 3, 4]


@pytest.mark.parametrize("network", [SMALL, JITTERED, DROPPING])
def test_a_seed_decides_the_weights(digits: tuple[Digits, Digits], network: Network) -> None:
    runs = [train(Training(Job("teacher", network, seed), *digits, device=CPU)) for seed in (5, 5, 6)]
    assert same(runs[0].network.state_dict(), runs[1].network.state_dict())
    assert not same(runs[0].network.state_dict(), runs[2].network.state_dict())


@pytest.mark.parametrize(
    ("network", "distillation"),
    [(SMALL, None), (DROPPING, None), (JITTERED, None), (FALLING, None), (SMALL, SOFT), (JITTERED, SOFT)],
)
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_going_on_gives_the_weights_of_going_through(
    digits: tuple[Digits, Digits],
    teacher: MLP,
    network: Network,
    distillation: Distillation | None,
    stop: int,
) -> None:
    def fresh() -> Training:
        job = Job("student", network, 0, distillation)
        return Training(job, *digits, device=CPU, teacher=teacher if distillation else None)

    through = train(fresh())
    tensors, told = train(fresh(), epochs=stop).state()
    stored: dict[str, Any] = json.loads(json.dumps(told))
    torch.rand(7)  # another past of the process's random numbers
    resumed = fresh()
    resumed.restore({name: value.clone() for name, value in tensors.items()}, stored)
    train(resumed)
    assert same(through.network.state_dict(), resumed.network.state_dict())
    assert same(through.best, resumed.best)
    assert facts(through.history) == facts(resumed.history)


def test_both_students_start_alike_and_differ_by_the_distillation_only(
    digits: tuple[Digits, Digits], teacher: MLP
) -> None:
    alone = Training(Job("student-alone", SMALL, 0), *digits, device=CPU)
    without = Distillation(temperature=20, alpha=0)
    distilled = Training(Job("student", SMALL, 0, without), *digits, device=CPU, teacher=teacher)
    assert same(alone.network.state_dict(), distilled.network.state_dict())
    assert same(train(alone).network.state_dict(), train(distilled).network.state_dict())


def test_distillation_brings_the_student_close_to_its_teacher(
    digits: tuple[Digits, Digits], teacher: MLP
) -> None:
    job = Job("student", SMALL.model_copy(update={"epochs": 30}), 1, Distillation(temperature=4, alpha=1))
    student = train(Training(job, *digits, device=CPU, teacher=teacher))
    alone = train(Training(Job("student-alone", job.network, 1), *digits, device=CPU))
    images = digits[1].images
    wanted = torch.softmax(predict(teacher, images) / 4, 1)
    distances = [
        (torch.softmax(predict(training.network, images) / 4, 1) - wanted).abs().sum(1).mean()
        for training in (student, alone)
    ]
    assert distances[0] < 0.5 * distances[1]


def test_the_teacher_is_asked_in_evaluation_mode_and_left_as_it_is(digits: tuple[Digits, Digits]) -> None:
    teacher = MLP([32], dropout=0.5).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    for network in (SMALL, JITTERED):  # asked once for all, and asked about each batch
        job = Job("student", network.model_copy(update={"epochs": 1}), 0, SOFT)
        train(Training(job, *digits, device=CPU, teacher=teacher))
        assert not teacher.training
    assert same(before, teacher.state_dict())


def test_the_best_weights_are_kept_not_the_last(digits: tuple[Digits, Digits]) -> None:
    training = Training(Job("teacher", SMALL.model_copy(update={"epochs": 3}), 0), *digits, device=CPU)
    train(training, epochs=2)
    best = {name: value.clone() for name, value in training.best.items()}
    errors = training.best_record["validation_errors"]
    with torch.no_grad():
        for weight in training.network.parameters():
            weight.normal_(0, 10)  # from here one epoch does not find back
    train(training)
    assert training.history[-1]["validation_errors"] > errors
    assert same(training.best, best)


def test_a_plateau_lowers_the_rate_and_goes_back_to_the_best_weights(digits: tuple[Digits, Digits]) -> None:
    training = Training(Job("teacher", FALLING, 0), *digits, device=CPU)
    rates = []
    went_back = False
    while not training.done:
        training.train_epoch(Silence())
        rates.append(training.history[-1]["learning_rate"])
        losses = [record["validation_loss"] for record in training.history]
        if losses[-1] > min(losses):
            went_back = True
            assert same(training.network.state_dict(), training.best)
    assert went_back
    assert rates[0] == 0.3
    assert rates[-1] < 0.31 * 0.1


def test_what_is_told_covers_every_digit_once(digits: tuple[Digits, Digits]) -> None:
    training, observer = Training(Job("teacher", SMALL, 0), *digits, device=CPU), Silence()
    training.train_epoch(observer)
    assert observer.told[-1]["progress"] == 1
    assert observer.told[-1]["loss"] == training.history[0]["loss"]
    assert round(training.history[0]["accuracy"] * 500, 6) % 1 == 0


def test_bfloat16_is_close_to_float32(digits: tuple[Digits, Digits]) -> None:
    job = Job("teacher", SMALL.model_copy(update={"epochs": 1}), 0)
    exact, quick = (train(Training(job, *digits, device=Device("cpu", bfloat16=b))) for b in (False, True))
    assert quick.history[0]["loss"] == pytest.approx(exact.history[0]["loss"], rel=0.02)
    assert all(value.dtype in (torch.float32, torch.int64) for value in quick.best.values())


def test_a_distillation_without_a_teacher_is_a_mistake(digits: tuple[Digits, Digits]) -> None:
    with pytest.raises(ValueError, match="student: a distillation needs a teacher"):
        Training(Job("student", SMALL, 0, SOFT), *digits, device=CPU)
