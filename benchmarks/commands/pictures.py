"""`distillery-bench pictures`: predictions on generated pictures of digits, by kind of picture."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
from pydantic import Field, PositiveInt
from rich.progress import track

from benchmarks.commands.bench import Bench, RepositorySettings
from benchmarks.errors import BenchmarkError
from benchmarks.pictures.converted import Converted, Number, convert, convert_numbers
from benchmarks.pictures.kinds.table import KINDS
from benchmarks.results.models import model_facts
from distillery import Metavar, unknown
from distillery.machine import usable_cores
from serving.codecs.pictures.digit_line import read
from serving.model.session import Session
from training.data.mnist import Digits, find_mnist, load_test, load_training

CHUNK = 20
"""Digits per task of a process."""


class Pictures(Bench, RepositorySettings):
    """Measure accuracy on generated pictures, by kind of picture.

    Each kind of picture is drawn from test digits by a seeded generator, decoded and converted to 28×28 as the service
    does it, and predicted by every model.
    """

    examples = (
        "distillery-bench pictures",
        "distillery-bench pictures --kinds vignette,form --digits 100 --validation",
    )
    limitations = (
        "the pictures are generated from MNIST digits; other handwriting differs in more than light and paper",
    )

    kinds: Annotated[list[str], Metavar("KIND,...")] = Field(
        [], description="kinds of pictures; all by default: " + ", ".join(KINDS)
    )
    digits: PositiveInt = Field(500, description="digits per kind")
    validation: bool = Field(
        False, description="draw validation digits instead of test digits, for development"
    )
    seed: int = Field(0, ge=0, description="seed of the generator")
    data_dir: Path | None = Field(None, description="folder with the MNIST files; downloaded by default")

    def measure(self) -> dict[str, Any]:
        for kind in self.kinds:
            if kind not in KINDS:
                raise BenchmarkError(f"--kinds: {unknown('kind of pictures', kind, KINDS)}")
        kinds = self.kinds or list(KINDS)
        entries = self.entries()
        sessions = {name: Session(entry.path) for name, entry in entries.items()}
        digits = self._digits()
        with ProcessPoolExecutor(usable_cores(), get_context("spawn")) as pool:
            rows = self._rows(pool, kinds, digits, sessions)
            numbers = [self._read(pool, digits, sessions, touching=touching) for touching in (False, True)]
        return {
            "models": model_facts(entries),
            "digits": len(digits.labels),
            "split": "validation" if self.validation else "test",
            "seed": self.seed,
            "rows": rows,
            "numbers": numbers,
        }

    def _rows(
        self,
        pool: ProcessPoolExecutor,
        kinds: list[str],
        digits: Digits,
        sessions: dict[str, Session],
    ) -> list[dict[str, Any]]:
        """Return the share of digits that each model predicts correctly, by kind of picture."""
        rows = []
        for kind, converted in self._convert(pool, kinds, digits):
            images = np.stack([one.image for one in converted])
            predicted = {name: np.array(session.run(images).digits) for name, session in sessions.items()}
            labels = digits.labels.numpy()
            rows.append(
                {
                    "kind": kind,
                    "description": KINDS[kind].description,
                    "rejected": sum(one.rejected for one in converted),
                    "ms": round(median(one.milliseconds for one in converted), 2),
                    "megapixels": round(median(one.pixels for one in converted) / 1e6, 3),
                    "correct": {
                        name: round(float((found == labels).mean()), 4) for name, found in predicted.items()
                    },
                }
            )
        return rows

    def _read(
        self,
        pool: ProcessPoolExecutor,
        digits: Digits,
        sessions: dict[str, Session],
        *,
        touching: bool,
    ) -> dict[str, Any]:
        """Return the share of whole numbers that each model reads correctly."""
        images, labels = digits.images.numpy(), digits.labels.tolist()
        starts = range(0, self.digits, CHUNK)
        running = [
            pool.submit(
                convert_numbers,
                images,
                labels,
                range(start, min(start + CHUNK, self.digits)),
                self.seed,
                touching=touching,
            )
            for start in starts
        ]
        numbers = [one for chunk in track(running, "numbers", transient=True) for one in chunk.result()]
        return {
            "touching": touching,
            "numbers": len(numbers),
            "rejected": sum(not number.candidates for number in numbers),
            "ms": round(median(number.milliseconds for number in numbers), 2),
            "correct": {
                name: round(sum(_number(session, one) == one.label for one in numbers) / len(numbers), 4)
                for name, session in sessions.items()
            },
        }

    def _digits(self) -> Digits:
        mnist = find_mnist(self.data_dir)
        digits = load_training(mnist)[1] if self.validation else load_test(mnist)
        return Digits(digits.images[: self.digits], digits.labels[: self.digits])

    def _convert(
        self, pool: ProcessPoolExecutor, kinds: list[str], digits: Digits
    ) -> Iterator[tuple[str, list[Converted]]]:
        images, labels = digits.images.numpy(), digits.labels.tolist()
        starts = range(0, len(images), CHUNK)
        running = {
            kind: [
                pool.submit(
                    convert,
                    kind,
                    images[start : start + CHUNK],
                    labels[start : start + CHUNK],
                    start,
                    self.seed,
                )
                for start in starts
            ]
            for kind in kinds
        }
        for kind in track(kinds, "drawing", transient=True):
            yield kind, [one for chunk in running[kind] for one in chunk.result()]


def _number(session: Session, number: Number) -> str:
    """Return what a model reads; nothing in a picture that was rejected."""
    if not number.candidates:
        return ""
    images = np.stack([candidate.image for candidate in number.candidates])
    outputs = session.run(images)
    chosen = read(number.candidates, outputs.logits, outputs.confidence)
    return "".join(str(outputs.digits[index]) for index in chosen)
