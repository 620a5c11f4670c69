"""A request log as a transfer set: images that a service has classified, with labels where feedback provides them.

    logged = LoggedDigits.read(Path("log"), find_mnist(None))
    logged.training      images to learn from; label −1 where it is unknown
    logged.validation    labelled images that no model learns from

Every image counts once, however often it was sent, and none that is also in MNIST: one of the test set would be learned
and then counted as recognised. Images are compared by their bytes, so a test digit that was moved, scaled or
photographed before it was sent is not found.
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from distillery.request_log.distinct import UNLABELLED, content_hash, distinct_images, is_held_out
from training.data.mnist import Digits, load_test_images, load_training
from training.data.mnist_files import DatasetError

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
        found = distinct_images(log.images, log.labels)
        place_of = {key: place for place, key in enumerate(found.keys)}
        training, validation = load_training(mnist)
        sources = {
            "mnist_test": load_test_images(mnist),
            "mnist_validation": validation.images,
            "mnist_training": training.images,
        }
        removed = {}
        for name, images in sources.items():
            known = place_of.keys() & {content_hash(image) for image in images.numpy()}
            removed[name] = len(known)
            for key in known:
                del place_of[key]
        kept = np.array(list(place_of.values()), np.int64)
        held_out = np.array([is_held_out(key) for key in place_of], np.bool_)
        labelled = found.labels[kept] != UNLABELLED
        counts = Counts(
            rows=len(log),
            duplicates=len(log) - len(found.keys),
            **removed,
            contradictory=int(found.contradictory[kept].sum()),
            labelled=int((labelled & ~held_out).sum()),
            unlabelled=int((~labelled & ~held_out).sum()),
            held_out=int(held_out.sum()),
            validation=int((labelled & held_out).sum()),
        )
        if held_out.all():
            raise DatasetError(
                f"--request-log {folder}: none of its {len(log):,} images can be learned from ({counts}); "
                "log more requests"
            )

        def digits(chosen: NDArray[np.int64]) -> Digits:
            images = np.ascontiguousarray(log.images[found.rows[chosen]])
            return Digits(torch.from_numpy(images), torch.from_numpy(found.labels[chosen]))

        digest = hashlib.sha256(b"".join(place_of) + found.labels[kept].tobytes())
        return cls(digits(kept[~held_out]), digits(kept[labelled & held_out]), counts, digest.hexdigest())

    @property
    def labelled(self) -> Digits:
        """The labelled images to learn from."""
        known = self.training.labels != UNLABELLED
        return Digits(self.training.images[known], self.training.labels[known])

    def facts(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self.counts)
