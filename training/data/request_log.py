"""A request log as a transfer set: images that a service has classified, with labels where feedback provides them.

    logged = LoggedDigits.read(Path("log"), find_mnist(None))
    logged.training      images to learn from; label −1 where it is unknown
    logged.validation    labelled images that no training uses

Every image counts once, however often it was sent, and none that is also in MNIST: one of the test set would be learned
and then counted as recognised. Images are compared by their bytes, so a test digit that was moved, scaled or
photographed before it was sent is not found.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch

from distillery.request_log.holdout import content_hash, is_held_out
from training.data.mnist import Digits, load_test_images, load_training
from training.data.mnist_files import DatasetError

UNLABELLED = -1
KEY = "request-log"
"""Of the log's hash among those of the data set's files."""


@dataclass(frozen=True)
class Counts:
    """Images of a log: how many there are, are left out, and remain."""

    rows: int
    """Images in the log; all below are distinct ones, except the duplicates."""
    duplicates: int
    mnist_test: int
    """Left out because they are in MNIST's test set, as the next two are."""
    mnist_validation: int
    mnist_training: int
    contradictory: int
    """Used as unlabelled: equal images with different labels."""
    labelled: int
    unlabelled: int
    held_out: int
    """Images that no training uses, labelled or not; not among the two above."""
    validation: int
    """Labelled images among those held out."""

    def __str__(self) -> str:
        removed = {
            "duplicates": self.duplicates,
            "MNIST test images": self.mnist_test,
            "MNIST validation images": self.mnist_validation,
            "MNIST training images": self.mnist_training,
        }
        left_out = ", ".join(f"{count:,} {name}" for name, count in removed.items() if count)
        return (
            f"{self.labelled + self.unlabelled:,} images to learn from, {self.labelled:,} of them labelled; "
            f"{self.held_out:,} held out, {self.validation:,} of them labelled"
            + (f"; left out: {left_out}" if left_out else "")
            + (f"; {self.contradictory:,} with contradictory labels" if self.contradictory else "")
        )


@dataclass(frozen=True)
class LoggedDigits:
    """The images of a request log that can be learned from, in the order of their hashes."""

    training: Digits
    """Labels are `UNLABELLED` where they are unknown."""
    validation: Digits
    """Labelled images among those held out."""
    counts: Counts
    sha256: str
    """Of images and labels, in whatever order and files they were logged."""

    @classmethod
    def read(cls, folder: Path, mnist: Path) -> Self:
        """Read the log in `folder`, without the images of MNIST, whose files are in `mnist`.

        Raises `RequestLogError` for a folder that is no log, and `DatasetError` if no image remains.
        """
        from distillery.request_log.read import read_log  # noqa: PLC0415 - needs pyarrow

        log = read_log(folder)
        labels_of: dict[bytes, set[int]] = {}
        row_of: dict[bytes, int] = {}
        for row, (image, label) in enumerate(zip(log.images, log.labels.tolist(), strict=True)):
            key = content_hash(image)
            row_of.setdefault(key, row)
            labels_of.setdefault(key, set()).update({label} - {UNLABELLED})
        training, validation = load_training(mnist)
        sources = {
            "mnist_test": load_test_images(mnist),
            "mnist_validation": validation.images,
            "mnist_training": training.images,
        }
        distinct, removed = len(row_of), {}
        for name, images in sources.items():
            known = row_of.keys() & {content_hash(image) for image in images.numpy()}
            removed[name] = len(known)
            for key in known:
                del row_of[key]
        keys = sorted(row_of)
        labels = {key: _agreed(labels_of[key]) for key in keys}
        learned = [key for key in keys if not is_held_out(key)]
        validated = [key for key in keys if is_held_out(key) and labels[key] != UNLABELLED]
        labelled = sum(labels[key] != UNLABELLED for key in learned)
        counts = Counts(
            rows=len(log),
            duplicates=len(log) - distinct,
            **removed,
            contradictory=sum(len(labels_of[key]) > 1 for key in keys),
            labelled=labelled,
            unlabelled=len(learned) - labelled,
            held_out=len(keys) - len(learned),
            validation=len(validated),
        )
        if not learned:
            raise DatasetError(
                f"--request-log {folder}: none of its {len(log):,} images can be learned from ({counts}); "
                "log more requests"
            )

        def digits(chosen: list[bytes]) -> Digits:
            rows = [row_of[key] for key in chosen]
            return Digits(
                torch.from_numpy(np.ascontiguousarray(log.images[rows])),
                torch.tensor([labels[key] for key in chosen], dtype=torch.int64),
            )

        digest = hashlib.sha256(b"".join(key + bytes([labels[key] - UNLABELLED]) for key in keys))
        return cls(digits(learned), digits(validated), counts, digest.hexdigest())

    @property
    def labelled(self) -> Digits:
        """The labelled images to learn from."""
        known = self.training.labels != UNLABELLED
        return Digits(self.training.images[known], self.training.labels[known])

    def facts(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self.counts)


def _agreed(labels: Iterable[int]) -> int:
    found = set(labels)
    return found.pop() if len(found) == 1 else UNLABELLED
