"""Small trainings on the sample digits, for the tests of the training loop."""

import torch
from torch import Tensor

from tests.support.training.samples import sample_training
from training.data.mnist import Digits
from training.loop.device import Device
from training.loop.soft_targets import SoftTargets
from training.loop.trainer import Job, Observer, Record, Training
from training.model.network import Network
from training.recipe.schema import Augmentation, Distillation, Model


def first(digits: Digits, count: int) -> Digits:
    """The first of `digits`."""
    return Digits(digits.images[:count], digits.labels[:count])


CPU = Device("cpu", bfloat16=False)
DIGITS = sample_training()
FEW = first(DIGITS[0], 120), first(DIGITS[1], 40)
"""Enough where a training is compared with an equal one, and not where it has to learn."""
SMALL = Model(hidden=[32, 24], epochs=4, batch_size=64, learning_rate=1e-2)
CONVOLUTIONAL = Model(stages=[[3, 4], [4]], hidden=[12], epochs=3, batch_size=60, learning_rate=1e-2)
ENSEMBLE = CONVOLUTIONAL.model_copy(update={"members": 2, "dropout": 0.2})
JITTERED = SMALL.model_copy(update={"augmentation": Augmentation(shift=2, rotation=10)})
RECURRING = JITTERED.model_copy(update={"views": 2})
DROPPING = SMALL.model_copy(update={"dropout": 0.3})
BOUNDED = SMALL.model_copy(update={"max_norm": 0.5, "weight_decay": 0.1})
FALLING = SMALL.model_copy(update={"schedule": "plateau", "patience": 0, "learning_rate": 0.3, "epochs": 8})


class Recorder(Observer):
    """Keeps the figures of every `advanced`."""

    def __init__(self) -> None:
        self.figures: list[Record] = []

    def advanced(self, job: Job, *, progress: float, figures: Record) -> None:  # noqa: ARG002
        self.figures.append(figures | {"progress": progress})


def taught(model: Model, distillation: Distillation | None = None) -> Model:
    """The same model with a teacher."""
    return model.model_copy(update={"distillation": distillation or Distillation(temperature=4, alpha=0.7)})


def new(
    model: Model,
    *,
    name: str = "student",
    seed: int = 0,
    teacher: Network | None = None,
    digits: tuple[Digits, Digits] = DIGITS,
) -> Training:
    """A training of `model` on the sample digits, before its first epoch."""
    targets = SoftTargets(teacher, CPU) if teacher else None
    return Training(Job(name, model, seed), *digits, device=CPU, teacher=targets)


def train(training: Training, *, epochs: int = 99) -> Training:
    """Train until the end, or until `epochs` epochs are done."""
    while not training.done and len(training.history) < epochs:
        training.train_epoch(Observer())
    return training


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """True if all tensors are bitwise equal."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def facts(history: list[Record]) -> list[Record]:
    """A history without its times."""
    clock = ("seconds", "images_per_second")
    return [{k: v for k, v in record.items() if k not in clock} for record in history]
