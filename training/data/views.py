"""Augmented views of the training digits, one per epoch.

A view depends on the recipe's seed and the view's number alone, never on the model that is trained with it: a teacher,
its student and the student's control are shown the same images ("function matching", Beyer et al. 2022,
arXiv:2106.05237), and a teacher's logits for a view serve all its students.
"""

import hashlib
from copy import copy
from functools import lru_cache

import torch
from torch import Tensor

from training.data.augmentation import CHUNK, augment
from training.distributed import compute_in_shares
from training.recipe.schema import Augmentation, Model

PLAIN = 0
"""The number of the view without augmentation."""
CACHED_VIEWS = 40
"""Recurring views kept in memory for all models of a process: 43 MB each with MNIST's 55,000 digits."""


def draw_seed(*key: object) -> int:
    """Return a seed for the random numbers that `key` names: 63 bits, as torch's generators accept."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


class Views:
    """The views of `images`, uint8 `[N, 28, 28]`, that `model` is trained with, from the recipe's `seed`."""

    def __init__(self, images: Tensor, model: Model, seed: int) -> None:
        self.images, self.augmentation, self.seed = images, model.augmentation, seed
        self.different = model.views or model.epochs
        # A new view in every epoch does not recur for this model, and would only fill the memory.
        self._draw = self.draw if model.views else self.draw.__wrapped__

    def of(self, images: Tensor) -> "Views":
        """Return the same views of other images."""
        other = copy(self)
        other.images = images
        return other

    def number(self, epoch: int) -> int:
        """Return the number of the view for `epoch` (from 1): `PLAIN`, or a recurring number from 1."""
        return (epoch - 1) % self.different + 1 if self.augmentation.enabled else PLAIN

    def show(self, number: int) -> Tensor:
        """Return view `number` of every digit, uint8 `[N, 28, 28]`."""
        if number == PLAIN:
            return self.images
        return self._draw(self.images, self.augmentation, self.seed, number)

    @staticmethod
    @lru_cache(maxsize=CACHED_VIEWS)
    def draw(images: Tensor, augmentation: Augmentation, seed: int, number: int) -> Tensor:
        """Return view `number` of `images`; cached by the identity of the tensor, not by its values."""
        generator = torch.Generator().manual_seed(draw_seed(seed, "view", number))

        def draw_part(part: slice) -> Tensor:
            return augment(images[part], augmentation, random=generator, after=part.start)

        return compute_in_shares(torch.empty_like(images), draw_part, step=CHUNK)
