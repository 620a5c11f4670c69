"""The committed sample of real digits: 600 from MNIST's training set, 200 from its test set."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distillery.files import sha256
from training.data import mnist
from training.data.mnist import Digits, split
from training.data.mnist_files import parse_images, parse_labels, read_file

DIGITS = Path(__file__).parents[2] / "data" / "digits"


def sample_training() -> tuple[Digits, Digits]:
    """500 digits to learn from and 100 to validate with; every digit equally often."""
    return split(_read("train"), 100)


def sample_test() -> Digits:
    """200 digits of the test set, 20 of each."""
    return _read("test")


def _read(part: str) -> Digits:
    return Digits(
        parse_images(read_file(DIGITS, f"{part}-images.idx")),
        parse_labels(read_file(DIGITS, f"{part}-labels.idx")),
    )


def write_as_mnist(folder: Path) -> dict[str, str]:
    """Write the sample under the names of MNIST's own files, unpacked; return their SHA-256 by name."""
    digests = {}
    for name, ours in (("train", "train"), ("t10k", "test")):
        for kind, ending in (("images", "idx3"), ("labels", "idx1")):
            content = read_file(DIGITS, f"{ours}-{kind}.idx")
            file = f"{name}-{kind}-{ending}-ubyte"
            (folder / file).write_bytes(content)
            digests[file] = sha256(content)
    return digests


@contextmanager
def samples_as_mnist(folder: Path) -> Iterator[None]:
    """Write the sample to `folder`, and let commands read it as MNIST with 500 training and 100 validation digits."""
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, digest in write_as_mnist(folder).items():
            patch.setitem(mnist.SHA256, name, digest)
        patch.setattr(mnist, "VALIDATION_DIGITS", 100)
        patch.setenv("DISTILLERY_DATA_DIR", str(folder))
        yield
