"""The digits that an export reads: training digits calibrate, validation digits choose, test digits are reported."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from export.outliers import DRAWN, Samples
from training.data.mnist import Digits, find_mnist, load_test, load_training


@dataclass(frozen=True, eq=False)
class Splits:
    """The three parts of the data set."""

    training: Digits
    validation: Digits
    test: Digits
    drawn: int = DRAWN
    """Images of each kind without a digit that acceptance rules are fitted on."""

    @classmethod
    def read(cls, data_dir: Path | None) -> Self:
        """Find, verify and read MNIST. Raises `training.data.mnist_files.DatasetError`."""
        folder = find_mnist(data_dir)
        return cls(*load_training(folder), load_test(folder))

    @cached_property
    def samples(self) -> Samples:
        """What acceptance rules are fitted on, drawn once for all models of an export."""
        return Samples.draw(self.training, self.validation, self.drawn)
