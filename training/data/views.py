"""What a network sees of the training digits in each epoch.

Views are drawn from the recipe's seed and their number alone, never from the model that looks at them: a teacher, its
student and the student's control see the very same pictures ("function matching", Beyer et al. 2022), and what a
teacher says of a view can be kept for whoever learns from it next.
"""

import hashlib
from copy import copy
from functools import lru_cache

import torch
from torch import Tensor

from training.data.augmentation import jitter
from training.recipe.schema import Augmentation, Model

PLAIN = 0
"""The number of the view that shows the digits as they are."""
KEPT = 40
"""Views that come round again and stay in memory, for all models of a process: 43 MB each with MNIST's 55,000."""


def draw_seed(*decisive: object) -> int:
    """Return the seed of the random numbers for what is named by `decisive`, in the 63 bits that torch takes."""
    digest = hashlib.sha256("/".join(map(str, decisive)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


class Views:
    """The views of `images`, uint8 `[N, 28, 28]`, that `model` is shown, by the recipe's seed."""

    def __init__(self, images: Tensor, model: Model, seed: int) -> None:
        self.images, self.augmentation, self.seed = images, model.augmentation, seed
        self.different = model.views or model.epochs
        # New views every epoch are not seen again by this model, and would only fill the memory.
        self._draw = self.draw if model.views else self.draw.__wrapped__

    def of(self, images: Tensor) -> "Views":
        """The same views of other images."""
        other = copy(self)
        other.images = images
        return other

    def number(self, epoch: int) -> int:
        """Return which view is shown in `epoch` (from 1): `PLAIN`, or one of those that come round again."""
        return (epoch - 1) % self.different + 1 if self.augmentation.enabled else PLAIN

    def show(self, number: int) -> Tensor:
        """Return that view of every digit, uint8 `[N, 28, 28]`."""
        if number == PLAIN:
            return self.images
        return self._draw(self.images, self.augmentation, self.seed, number)

    @staticmethod
    @lru_cache(maxsize=KEPT)
    def draw(images: Tensor, augmentation: Augmentation, seed: int, number: int) -> Tensor:
        """Return view `number` of `images` (the same tensor, not an equal one, for what is kept to be found)."""
        return jitter(images, augmentation, random=random_of_view(seed, number))


def random_of_view(seed: int, number: int) -> torch.Generator:
    """Return the random numbers that view `number` is drawn from."""
    return torch.Generator().manual_seed(draw_seed(seed, "view", number))
