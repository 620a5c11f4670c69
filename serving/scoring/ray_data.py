"""Score parts on Ray Data: a dataset of parts, and a pool of actors that score and write them.

Only descriptions of parts and counts travel through Ray; every node reads the inputs and writes the results itself, by
paths that are the same everywhere. https://docs.ray.io/en/latest/data/data.html
"""

import logging
import os
import pickle
import socket
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

# Read by the import. Ray's native code reports as an error that actors with arguments can be restarted.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.data import ActorPoolStrategy, DataContext

from distillery import DistilleryError
from serving.scoring.inputs.base import Part
from serving.scoring.output import Done, Output
from serving.scoring.processes import Lost, Progress, Update, Worker
from serving.scoring.score import Scorer

_CONNECT_S = 5.0
_IN_FLIGHT = 2
"""Parts that an actor has, so that it does not wait for the next one."""


@contextmanager
def ray_cluster(address: str | None, processes: int | None) -> Iterator[int]:
    """Connect to the cluster at an address, or start one on this machine; yield the number of actors to start.

    That is `processes`, or one per CPU of the cluster. Raises `DistilleryError` if there is no cluster at the address.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    new = {"num_cpus": processes, "include_dashboard": False}
    options = {"address": address} if address else new
    try:
        if address:
            _reach(address)
        ray.init(**options, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        raise DistilleryError(f"Ray cluster {address or 'on this machine'}: {error}") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    try:
        yield processes or int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()


def score_parts_on_ray(
    parts: Iterable[Part], scorer: Scorer, output: Output, processes: int
) -> Generator[Update]:
    """Score and write every part, by `processes` actors of the connected cluster. Raises `DistilleryError`.

    Parts of an actor or a node that dies are scored by another one.
    """
    items = [{"part": pickle.dumps(part)} for part in parts]
    if not items:
        return
    shared = ray.put((scorer, output))
    scored = ray.data.from_items(items, override_num_blocks=len(items)).map(
        _ScorePart,  # type: ignore[arg-type] # its instances are called
        fn_constructor_args=([shared],),
        compute=ActorPoolStrategy(size=min(processes, len(items)), max_tasks_in_flight_per_actor=_IN_FLIGHT),
        num_cpus=1,
    )
    for row in scored.iter_rows():
        update: Done | Lost | DistilleryError = pickle.loads(row["update"])  # noqa: S301 - of our own actor
        if isinstance(update, DistilleryError):
            raise update
        if isinstance(update, Done):
            yield Progress(update.predicted, update.rejected)
        yield update


def _reach(address: str) -> None:
    """Check that something listens at `HOST:PORT`, within seconds; Ray tries for minutes. Raises `OSError`."""
    host, separator, port = address.rpartition(":")
    if separator and port.isdecimal() and "/" not in host:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S):
            pass


class _ScorePart:
    """The actor, with a process of its own: a file that crashes a decoder ends that process and not the actor.

    Ray would start the actor again, and again with the same file.
    """

    def __init__(self, shared: list[Any]) -> None:
        self._scorer, self._output = ray.get(shared[0])
        self._worker: Worker | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        self._worker = self._worker or Worker(self._scorer, self._output)
        self._worker.begin(pickle.loads(row["part"]))  # noqa: S301 - of our own command
        update: Update | DistilleryError
        try:
            while isinstance(update := self._worker.receive(), Progress):
                pass
        except DistilleryError as error:
            update = error
        if isinstance(update, Lost):
            self._worker = None
        return {"update": pickle.dumps(update)}
