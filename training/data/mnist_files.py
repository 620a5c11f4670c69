"""The four MNIST files: names, hashes, verified reading, IDX format."""

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distillery import DistilleryError
from distillery.files import sha256
from training.model.network import SIDE

SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""SHA-256 of the four files, unpacked, by name."""
LARGEST_FILE = 48_000_000
"""Bytes; unpacking a .gz stops there."""


class DatasetError(DistilleryError):
    """MNIST files missing, or with the wrong checksum."""


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
    """Return the images of an IDX file (16 bytes of header, then a byte per pixel), `uint8 [N, 28, 28]`."""
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=16).reshape(-1, SIDE, SIDE).copy())


def parse_labels(content: bytes) -> Tensor:
    """Return the labels of an IDX file (8 bytes of header, then a byte per label), `int64 [N]`."""
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=8).astype(np.int64))
