"""`distillery-bench score`: bulk scoring, against the session that it runs."""

import io
import tarfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from benchmarks.commands.bench import Bench, RepositorySettings
from benchmarks.load.digits import load_digits
from benchmarks.load.interleave import interleave
from benchmarks.pictures.kinds.screen import CANVAS
from benchmarks.results.models import model_facts
from benchmarks.results.ratio import Ratio
from distillery.machine import usable_cores
from serving.codecs.base import BodyLimits
from serving.codecs.pictures.decode import decode_pictures
from serving.model.repository import ModelEntry
from serving.model.session import open_session
from serving.scoring.inputs.arrays import npy_file
from serving.scoring.inputs.base import BATCH, Input
from serving.scoring.inputs.tar import tar_file
from serving.scoring.output import Done, Output
from serving.scoring.processes import score_parts
from serving.scoring.score import Scorer

PARTS = 8
"""Per process; the first one of each process is not counted."""
WARM_UP_RUNS = 20


class Score(Bench, RepositorySettings):
    """Measure bulk scoring of arrays and of pictures, against the session alone.

    A session in one process runs batches that are in memory; scoring reads, decodes, runs and writes in all processes.
    """

    examples = (
        "distillery-bench score",
        "distillery-bench score --models fast-int8 --rounds 3 --seconds 0.5",
    )
    limitations = (
        "the inputs are in the page cache",
        "the start of the processes and the first part of each are not counted",
        "files of results are flushed to the disk of this machine",
    )

    processes: PositiveInt = Field(
        default_factory=usable_cores, description="processes; default: one per core"
    )
    rounds: PositiveInt = Field(5, description="rounds; each measures every case once")
    seconds: PositiveFloat = Field(1.0, description="seconds per case and round, about")

    def measure(self) -> dict[str, Any]:
        entries = self.entries()
        with TemporaryDirectory() as folder:
            rows = [
                row for entry in self.measured(entries).values() for row in self._rows(entry, Path(folder))
            ]
        return {
            "models": model_facts(entries),
            "processes": self.processes,
            "batch": BATCH,
            "rounds": self.rounds,
            "rows": rows,
        }

    def _rows(self, entry: ModelEntry, folder: Path) -> Iterator[dict[str, Any]]:
        """Yield a row for arrays and one for pictures."""
        alone = _session(entry)
        rate = 1 / _seconds_per_image(alone)
        inputs = {
            "arrays": _write_arrays(folder / "digits.npy", self._count(rate, BATCH)),
            "pictures": _write_pictures(folder / "pictures.tar", self._count(1 / _seconds_to_decode(), 1)),
        }
        cases: list[Callable[[], float]] = [lambda: _images_per_second(alone, self.seconds)]
        cases += [lambda source=source: self._score(entry, source, folder) for source in inputs.values()]  # type: ignore[misc]
        session, *scored = interleave(cases, self.rounds, lambda case: case())
        for name, rates in zip(inputs, scored, strict=True):
            cores = [self.processes * each for each in session]
            yield {
                "model": entry.name,
                "input": name,
                "images_per_s": round(median(rates)),
                "session_images_per_s": round(median(session)),
                "share": Ratio.within_rounds(rates, cores).as_json(),
                "rounds_images_per_s": [round(each) for each in rates],
            }

    def _count(self, per_second: float, multiple: int) -> int:
        """Return the number of images for one case; each part has a multiple of `multiple`."""
        unit = PARTS * self.processes * multiple
        return unit * max(1, round(per_second * self.processes * self.seconds / unit))

    def _score(self, entry: ModelEntry, source: Input, folder: Path) -> float:
        """Return the images per second once every process has finished a part."""
        total = _items(source)
        with TemporaryDirectory(dir=folder) as out:
            parts = source.parts(total // (PARTS * self.processes))
            updates = score_parts(parts, Scorer(entry, BodyLimits(1)), Output(Path(out), {}), self.processes)
            times = [(time.perf_counter(), each.predicted) for each in updates if isinstance(each, Done)]
        began = times[self.processes - 1][0]
        return sum(count for _, count in times[self.processes :]) / (times[-1][0] - began)


Run = Callable[[], object]


def _session(entry: ModelEntry) -> Run:
    """Return a run of one batch after another, of several that are in memory."""
    session = open_session(entry.path)
    batches = cycle(list(np.resize(load_digits(), (16, BATCH, 28, 28))))
    return lambda: session.run(["probabilities"], {"image": next(batches)})


def _images_per_second(run: Run, seconds: float) -> float:
    for _ in range(WARM_UP_RUNS):
        run()
    runs, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        run()
        runs += 1
    return runs * BATCH / elapsed


def _seconds_per_image(run: Run) -> float:
    return 1 / _images_per_second(run, 0.1)


def _seconds_to_decode() -> float:
    files = [("", content) for content in _pictures()]
    began = time.perf_counter()
    decode_pictures(files, 10**9)
    return (time.perf_counter() - began) / len(files)


def _pictures() -> list[bytes]:
    """Return pictures as a browser sends them: digits drawn on a canvas."""
    return [path.read_bytes() for path in sorted(CANVAS.glob("*.png"))]


def _write_arrays(path: Path, count: int) -> Input:
    np.save(path, np.resize(load_digits(), (count, 28, 28)))
    return npy_file(path)


def _write_pictures(path: Path, count: int) -> Input:
    with tarfile.open(path, "w") as archive:
        for number, content in enumerate(islice(cycle(_pictures()), count)):
            member = tarfile.TarInfo(f"{number:06}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return tar_file(path)


def _items(source: Input) -> int:
    return sum(part.stop - part.first for part in source.parts(1_000_000))
