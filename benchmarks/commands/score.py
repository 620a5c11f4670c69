"""`distillery-bench score`: bulk scoring, against the session that it runs."""

import io
import multiprocessing
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import cycle, islice, product
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

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
from serving.scoring.inputs.base import BATCH, Input, Part
from serving.scoring.inputs.tar import tar_file
from serving.scoring.output import Done, Output
from serving.scoring.processes import Update, score_parts
from serving.scoring.ray_data import ray_cluster, score_parts_on_ray
from serving.scoring.score import Scorer

PARTS = 10
"""Per process."""
WARM_UP_PARTS = 2
"""Per process; not counted."""
WARM_UP_RUNS = 20
Engine = Callable[[Iterable[Part], Scorer, Output, int], Iterator[Update]]
ENGINES: dict[str, Engine] = {"local": score_parts, "ray": score_parts_on_ray}
CALIBRATION_S = 0.2


class Score(Bench, RepositorySettings):
    """Measure bulk scoring of arrays and of pictures, against the session alone.

    Sessions run batches that are in memory, in one process and in all of them at once; scoring reads, decodes, runs and
    writes in all processes, of this command or of a Ray cluster on this machine.
    """

    examples = (
        "distillery-bench score",
        "distillery-bench score --models fast-int8 --rounds 3 --seconds 0.5",
    )
    limitations = (
        "the inputs are in the page cache",
        "the start of the processes and the first two parts of each are not counted",
        "files of results are flushed to the disk of this machine",
    )

    processes: PositiveInt = Field(
        default_factory=usable_cores, description="processes; default: one per core"
    )
    engine: list[Literal["local", "ray"]] = Field(["local", "ray"], description="engines of bulk scoring")
    rounds: PositiveInt = Field(5, description="rounds; each measures every case once")
    seconds: PositiveFloat = Field(3.0, description="seconds per case and round, about")

    def measure(self) -> dict[str, Any]:
        entries = self.entries()
        with TemporaryDirectory() as folder, ExitStack() as stack:
            if "ray" in self.engine:
                stack.enter_context(ray_cluster(None, self.processes))
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
        """Yield a row for arrays and one for pictures, by engine."""
        with _sessions(entry, self.processes) as sessions:
            rate = sessions(1, CALIBRATION_S)
            inputs = {
                "arrays": _write_arrays(folder / "digits.npy", self._count(rate, BATCH)),
                "pictures": _write_pictures(
                    folder / "pictures.tar", self._count(1 / _seconds_to_decode(), 1)
                ),
            }
            cases: dict[str, Callable[[], float]] = {
                "one": lambda: sessions(1, self.seconds),
                "all": lambda: sessions(self.processes, self.seconds),
                **{
                    f"{name} {engine}": partial(self._score, ENGINES[engine], entry, source, folder)
                    for name, source in inputs.items()
                    for engine in self.engine
                },
            }
            measured = interleave(list(cases.values()), self.rounds, lambda case: case())
        rates = dict(zip(cases, measured, strict=True))
        reference = [self.processes * each for each in rates["one"]]
        for name, engine in product(inputs, self.engine):
            case = f"{name} {engine}"
            yield {
                "model": entry.name,
                "input": name,
                "engine": engine,
                "images_per_s": round(median(rates[case])),
                "session_images_per_s": round(median(rates["one"])),
                "sessions_images_per_s": round(median(rates["all"])),
                "share": Ratio.within_rounds(rates[case], reference).as_json(),
                "share_of_sessions": Ratio.within_rounds(rates[case], rates["all"]).as_json(),
                "rounds_images_per_s": [round(each) for each in rates[case]],
            }

    def _count(self, per_second: float, multiple: int) -> int:
        """Return the number of images for one case; each part has a multiple of `multiple`."""
        unit = PARTS * self.processes * multiple
        return unit * max(1, round(per_second * self.processes * self.seconds / unit))

    def _score(self, engine: Engine, entry: ModelEntry, source: Input, folder: Path) -> float:
        """Return the images per second after the first parts."""
        total = _items(source)
        with TemporaryDirectory(dir=folder) as out:
            parts = source.parts(total // (PARTS * self.processes))
            updates = engine(parts, Scorer(entry, BodyLimits(1)), Output(Path(out), {}), self.processes)
            times = [(time.perf_counter(), each.predicted) for each in updates if isinstance(each, Done)]
        first = WARM_UP_PARTS * self.processes
        return sum(count for _, count in times[first:]) / (times[-1][0] - times[first - 1][0])


@contextmanager
def _sessions(entry: ModelEntry, count: int) -> Iterator[Callable[[int, float], float]]:
    """Start processes with a session each; yield a function that runs some at once and returns images per second."""
    spawn = multiprocessing.get_context("spawn")
    pipes = []
    for _ in range(count):
        ours, theirs = spawn.Pipe()
        spawn.Process(target=_run_session, args=(theirs, entry.content), daemon=True).start()
        theirs.close()
        pipes.append(ours)

    def measure(processes: int, seconds: float) -> float:
        for pipe in pipes[:processes]:
            pipe.send(seconds)
        return sum(float(pipe.recv()) for pipe in pipes[:processes])

    measure(count, 0)  # all have started
    yield measure
    for pipe in pipes:
        pipe.close()  # ends its process


def _run_session(pipe: Connection, model: bytes) -> None:
    """Run batches that are in memory for as long as each message says; send the images per second."""
    session = open_session(model)
    batches = cycle(list(np.resize(load_digits(), (16, BATCH, 28, 28))))
    with suppress(EOFError):
        while True:
            seconds = pipe.recv()
            pipe.send(
                _images_per_second(lambda: session.run(["probabilities"], {"image": next(batches)}), seconds)
            )


def _images_per_second(run: Callable[[], object], seconds: float) -> float:
    for _ in range(WARM_UP_RUNS):
        run()
    runs, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        run()
        runs += 1
    return runs * BATCH / elapsed


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
