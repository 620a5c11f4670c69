"""Where a run lives, and when a model is done.

runs/<recipe>/<model>-<fingerprint>/    one folder for each set of settings: nothing is ever overwritten
    recipe.json                         everything that decides the weights
    history.jsonl, history.csv          one line an epoch
    state.safetensors                   after each epoch, until the training is finished
    model.safetensors                   the weights of the epoch that is kept; there only when finished
    evidence.json, report.json          what it answers to the test digits, and what follows, once reported
    MODEL_CARD.md                       the same for people
runs/<recipe>/<model>                   symbolic link to the current one
"""

import csv
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distillery import DistilleryError
from training.loop.trainer import Record, Training
from training.model.checkpoint import load_tensors, save_checkpoint, save_tensors
from training.model.files import write_atomically


class RunError(DistilleryError):
    """A runs folder that cannot be used."""


def fingerprint(decisive: dict[str, Any]) -> str:
    """Return a hash of everything that decides something."""
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


class ModelRun:
    """The files of one model with one set of settings."""

    def __init__(self, root: Path, name: str, decisive: dict[str, Any], *, identity: str) -> None:
        self.name = name
        self.decisive = decisive
        self.fingerprint = identity
        self.folder = root / f"{name}-{self.fingerprint[:8]}"
        self.link = root / name
        self.checkpoint = self.folder / "model.safetensors"
        self._state = self.folder / "state.safetensors"

    @property
    def finished(self) -> bool:
        """Whether the model is trained with just these settings."""
        return self.checkpoint.exists()

    def resume(self, training: Training) -> None:
        """Prepare the folder, and take `training` to where an interrupted one stopped."""
        for leftover in self.folder.glob(".*-*"):  # of a write that was killed
            leftover.unlink()
        write_atomically(self.folder / "recipe.json", _json(self.decisive))
        if self._state.exists():
            try:
                training.restore(*load_tensors(self._state))
            except KeyError as error:
                raise RunError(
                    f"{self._state} was written by another version of distillery-train: it has {error}; delete it, "
                    "and the training begins again"
                ) from None

    def save(self, training: Training) -> None:
        """Keep what an interrupted training needs to go on, and the history for people."""
        save_tensors(self._state, *training.state())
        self._write_history(training.history)

    def finish(self, training: Training, card: dict[str, Any]) -> None:
        """Publish the weights to keep."""
        self._write_history(training.history)
        save_checkpoint(self.checkpoint, training.kept, card)

    def drop_state(self) -> None:
        """Take away the state of a finished model: it has done its work."""
        self._state.unlink(missing_ok=True)

    def make_current(self) -> None:
        """Let `runs/<recipe>/<model>` name this model. Raises `RunError` when something else is there."""
        if self.link.exists() and not self.link.is_symlink():
            raise RunError(f"{self.link} is not a link to a trained model; move it away")
        if self.link.is_symlink() and self.link.readlink() == Path(self.folder.name):
            return  # its date says since when the model is the current one
        temporary = self.link.with_name(f".{self.name}-link")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(self.folder.name)
        temporary.replace(self.link)

    def drop_stale_link(self) -> None:
        """Take away a link to a model of other settings, so that nobody mixes it with the new ones."""
        if self.link.is_symlink() and self.link.readlink() != Path(self.folder.name):
            self.link.unlink()

    def _write_history(self, history: Sequence[Record]) -> None:
        lines = "".join(json.dumps(record) + "\n" for record in history)
        write_atomically(self.folder / "history.jsonl", lines.encode())
        table = io.StringIO()
        writer = csv.DictWriter(table, list(history[0]))
        writer.writeheader()
        writer.writerows(history)
        write_atomically(self.folder / "history.csv", table.getvalue().encode())


def read_history(folder: Path) -> list[Record]:
    """Return a model's epochs. Raises `RunError` for a model without a history."""
    try:
        lines = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise RunError(f"there is no history in {folder}; train it with distillery-train") from None
    return [json.loads(line) for line in lines]


@contextmanager
def only_one(root: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep a second training out of `root`: raise `RunError` there, or wait. A killed process frees it."""
    root.mkdir(parents=True, exist_ok=True)
    lock = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise RunError(
                f"another distillery-train is at work in {root}; wait for it, or use --out"
            ) from None
        yield
    finally:
        os.close(lock)


def at_work(root: Path) -> bool:
    """Return whether some process has `root` to itself."""
    try:
        with only_one(root):
            return False
    except RunError:
        return True


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
