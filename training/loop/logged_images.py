"""The images of a request log beside MNIST's in the epochs of a student: how many, which, and with which loss.

An epoch shows `log_share` of its images from the log, but none more than `log_repeats` times. So a log of 50 images
adds 1,000 to MNIST's 55,000 in an epoch, one of 1,000 or of a million 13,750; of the latter, every epoch shows others.
They are augmented as MNIST's are, every repetition differently.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from distillery.request_log.distinct import UNLABELLED
from training.data.augmentation import augment
from training.data.mnist import Digits
from training.data.views import draw_seed
from training.loop.device import Device
from training.loop.soft_targets import SoftTargets
from training.recipe.schema import Model

LEAST_CHECKED, MOST_CHECKED = 50, 5_000
"""Labelled images on which a teacher is checked: with fewer it is trusted, and more are not needed."""


def images_per_epoch(count: int, mnist: int, *, share: float, repeats: int) -> int:
    """Return how many images of a log of `count` an epoch shows beside `mnist` digits."""
    return min(round(mnist * share / (1 - share)), repeats * count)


class Trust(NamedTuple):
    """Whether a teacher labels unlabelled images, from its errors on labelled ones."""

    checked: int
    """Labelled images."""
    errors: int
    """Of the teacher on them."""
    unlabelled: bool
    """Whether the unlabelled images are used."""

    @classmethod
    def of(cls, teacher: SoftTargets, labelled: Digits, least: float) -> "Trust":
        """Compute it: at least the share `least` must be right, if there are enough labelled images to tell."""
        some = Digits(labelled.images[:MOST_CHECKED], labelled.labels[:MOST_CHECKED])
        errors = teacher.errors(some) if len(some) else 0
        return cls(len(some), errors, len(some) < LEAST_CHECKED or errors <= (1 - least) * len(some))


class Sample(NamedTuple):
    """The M images of a log in one epoch."""

    images: Tensor
    """`uint8 [M, 28, 28]`"""
    labels: Tensor
    """`int64 [M]`, `UNLABELLED` where unknown."""
    targets: Tensor
    """The teacher's logits, `float32 [M, 10]`."""
    alphas: Tensor
    """The weight of the soft targets, `float32 [M]`; the label's is 1 − alpha."""


class LoggedImages:
    """Samples of a log for the epochs of one student, which learns from its `teacher` beside `mnist` digits.

    The samples are consecutive parts of an endless sequence that shows all images of the log, in a random order, then
    all of them again in another. There are as many different samples as the model has views, or more if the log is
    only then seen as a whole; a teacher's logits are those of a sample. They depend on the seed alone, as views do.
    """

    teacher: SoftTargets
    trust: Trust | None = None

    def __init__(self, digits: Digits, model: Model, seed: int, *, mnist: int, device: Device) -> None:
        if model.distillation is None:
            raise ValueError("a request log is for models that learn from a teacher")
        settings = model.distillation
        self.size = images_per_epoch(
            len(digits), mnist, share=settings.log_share, repeats=settings.log_repeats
        )
        self.different = min(
            model.epochs, max(model.views or model.epochs, math.ceil(len(digits) / self.size))
        )
        self._digits, self._model, self._seed = digits, model, seed
        self._alpha, self._device = settings.alpha, device

    def sample(self, epoch: int) -> Sample:
        """Return the images for `epoch` (from 1), on the device."""
        number = (epoch - 1) % self.different + 1
        places = self.places(number)
        images = self._digits.images[places]
        if self._model.augmentation.enabled:
            generator = torch.Generator().manual_seed(draw_seed(self._seed, "log-view", number))
            images = augment(images, self._model.augmentation, random=generator)
        sample = self._device.move(Digits(images, self._digits.labels[places]))
        targets = self.teacher.logits(number, sample.images)
        return Sample(sample.images, sample.labels, targets, self._alphas(sample.labels, targets))

    def places(self, number: int) -> Tensor:
        """Return the indices of the images of sample `number` (from 1), `int64 [M]`."""
        count = len(self._digits)
        positions = torch.arange((number - 1) * self.size, number * self.size)
        orders = {
            turn: torch.randperm(
                count, generator=torch.Generator().manual_seed(draw_seed(self._seed, "log-order", turn))
            )
            for turn in range(int(positions[0]) // count, int(positions[-1]) // count + 1)
        }
        return torch.cat(
            [order[positions[positions // count == turn] % count] for turn, order in orders.items()]
        )

    def _alphas(self, labels: Tensor, targets: Tensor) -> Tensor:
        """Return the weight of every image's soft targets.

        That of the recipe for a label that the teacher predicts too; 1 without a label, and 0 where the teacher
        contradicts it: Meng et al. 2019, "Conditional teacher-student learning", arXiv:1904.12399. Images that are
        mixed have no label.
        """
        if self._model.augmentation.mixup:
            return torch.ones(labels.shape, device=labels.device)
        alphas = torch.full(labels.shape, self._alpha, device=labels.device)
        known = labels != UNLABELLED
        alphas[~known] = 1
        alphas[known & (targets.argmax(1) != labels)] = 0
        return alphas
