"""`distillery-bench pictures`: predictions on generated pictures of digits, by kind of picture."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
from pydantic import Field, PositiveInt
from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.commands.bench import Bench, RepositorySettings, progress_bar
from benchmarks.errors import BenchmarkError
from benchmarks.pictures.converted import Converted, convert
from benchmarks.pictures.kinds import KINDS
from benchmarks.results.models import model_facts
from distillery import Metavar, unknown
from distillery.machine import usable_cores
from serving.model.session import open_session
from training.data.mnist import Digits, find_mnist, load_test, load_training

CHUNK = 20
"""Digits per task of a process."""


class Pictures(Bench, RepositorySettings):
    """Measure accuracy on generated pictures, by kind of picture.

    Each kind of picture is drawn from test digits by a seeded generator, decoded and converted to 28×28 as the service
    does it, and predicted by every model. Prints a table and, last, one line of JSON; keeps the result in a file under
    --results-dir.
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
        sessions = {name: open_session(entry.path) for name, entry in entries.items()}
        digits = self._digits()
        rows = []
        for kind, converted in self._convert(kinds, digits):
            images = np.stack([one.image for one in converted])
            predicted = {
                name: session.run(["probabilities"], {"image": images})[0].argmax(1)
                for name, session in sessions.items()
            }
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
        return {
            "models": model_facts(entries),
            "digits": len(digits.labels),
            "split": "validation" if self.validation else "test",
            "seed": self.seed,
            "rows": rows,
        }

    def _digits(self) -> Digits:
        mnist = find_mnist(self.data_dir)
        digits = load_training(mnist)[1] if self.validation else load_test(mnist)
        return Digits(digits.images[: self.digits], digits.labels[: self.digits])

    def _convert(self, kinds: list[str], digits: Digits) -> Iterator[tuple[str, list[Converted]]]:
        images, labels = digits.images.numpy(), digits.labels.tolist()
        starts = range(0, len(images), CHUNK)
        with ProcessPoolExecutor(usable_cores(), get_context("spawn")) as pool, progress_bar() as bar:
            task = bar.add_task("drawing", total=len(kinds) * len(starts))
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
            for kind, chunks in running.items():
                converted: list[Converted] = []
                for chunk in chunks:
                    converted += chunk.result()
                    bar.update(task, advance=1, description=kind)
                yield kind, converted

    def tables(self, data: dict[str, Any]) -> Iterator[Table | str]:
        table = Table(
            title=f"{data['digits']} {data['split']} digits per kind; correct, %",
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        names = list(data["models"])
        table.add_column("kind", no_wrap=True)
        for name in (*names, "ms"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in data["rows"]:
            shares = (f"{row['correct'][name] * 100:.1f}" for name in names)
            table.add_row(row["kind"], *shares, f"{row['ms']:.1f}")
        means = [float(np.mean([row["correct"][name] for row in data["rows"]])) * 100 for name in names]
        table.add_row("mean", *(f"{mean:.1f}" for mean in means), "", style="bold")
        yield table
        yield "ms: CPU time of decoding and conversion, median; with one thread"
