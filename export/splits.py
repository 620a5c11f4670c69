"""The digits that an export reads: training digits calibrate, validation digits choose, test digits are reported."""

from pathlib import Path
from typing import NamedTuple, Self

from training.data.mnist import Digits, find_mnist, load_test, load_training


class Splits(NamedTuple):
    """The three parts of the data set."""

    training: Digits
    validation: Digits
    test: Digits

    @classmethod
    def read(cls, data_dir: Path | None) -> Self:
        """Find, verify and read MNIST. Raises `training.data.mnist_files.DatasetError`."""
        folder = find_mnist(data_dir)
        return cls(*load_training(folder), load_test(folder))
