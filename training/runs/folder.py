"""Layout of a runs folder, and the state of each model in it.

runs/<recipe>/<model>-<cache key>/      one folder for each set of settings: nothing is ever overwritten
    recipe.json                         everything the weights depend on; its hash is the cache key
    history.jsonl, history.csv          one line per epoch
    state.safetensors                   after each epoch, until training is finished
    model.safetensors                   the weights of the selected epoch; present only when training is finished
    metrics.json, report.json           metrics on the test digits, and the report made from them
    MODEL_CARD.md                       the same as a document
runs/<recipe>/<model>                   symbolic link to the current one; a file with its name where there are no
                                        links: on exFAT, on some shares
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from distillery import DistilleryError
from distillery.files import write_atomically
from training.loop.trainer import Record, Training
from training.model.checkpoint import load_checkpoint, load_tensors, save_checkpoint, save_tensors

LONGEST_NAME = 255
"""Bytes of a file name; the file that stands for a link contains one."""


class RunError(DistilleryError):
    """A runs folder that cannot be used."""


def cache_key(inputs: dict[str, Any]) -> str:
    """Return a hash of everything that a result depends on: equal inputs, equal result."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


class ModelRun:
    """The files of one model with one set of settings.

    `inputs` is everything the weights depend on; `key` its hash, see `cache_key`.
    """

    def __init__(self, root: Path, name: str, inputs: dict[str, Any], *, key: str) -> None:
        self.name = name
        self.inputs = inputs
        self.cache_key = key
        self.folder = root / f"{name}-{key[:8]}"
        self.link = root / name
        self.checkpoint = self.folder / "model.safetensors"
        self._state = self.folder / "state.safetensors"

    def metadata(self) -> dict[str, Any] | None:
        """Return the metadata of the finished checkpoint, None before. Raises `CheckpointError`."""
        return load_checkpoint(self.checkpoint).metadata if self.checkpoint.exists() else None

    def prepare(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Create the folder; return the state of an interrupted training, if any.

        Raises `CheckpointError` and `FileError`.
        """
        write_atomically(self.folder / "recipe.json", (json.dumps(self.inputs, indent=2) + "\n").encode())
        return load_tensors(self._state) if self._state.exists() else None

    def resume(self, training: Training, state: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
        """Restore `training` from what `prepare` returned. Raises `RunError` for an incompatible state."""
        try:
            training.restore(*state)
        except KeyError as error:
            raise RunError(
                f"{self._state} was written by another version of distillery-train: unexpected {error}; "
                "delete it to start this training again"
            ) from None

    def save(self, training: Training) -> None:
        """Write the state from which an interrupted training resumes, and the history."""
        save_tensors(self._state, *training.state())
        self._write_history(training.history)

    def finish(self, training: Training, metadata: dict[str, Any]) -> None:
        """Write the checkpoint of the selected epoch."""
        self._write_history(training.history)
        save_checkpoint(self.checkpoint, training.selected, metadata)

    def drop_state(self) -> None:
        """Delete the state of a finished training."""
        self._state.unlink(missing_ok=True)

    def make_current(self) -> None:
        """Point `runs/<recipe>/<model>` to this model. Raises `RunError` if that path is not a link."""
        if self._linked() == self.folder.name:
            return  # the date of the link says since when the model is the current one
        temporary = self.link.with_name(f".{self.name}-link")
        temporary.unlink(missing_ok=True)
        try:
            temporary.symlink_to(self.folder.name)
        except OSError:  # the file system has no links
            write_atomically(self.link, f"{self.folder.name}\n".encode())
        else:
            temporary.replace(self.link)

    def drop_stale_link(self) -> None:
        """Delete a link to a model with other settings, so that it is not mixed with new ones.

        Raises `RunError` if something else has the link's name.
        """
        if self._linked() not in {None, self.folder.name}:
            self.link.unlink()

    def _linked(self) -> str | None:
        """Return the name of the folder that the link leads to, None without a link. Raises `RunError`."""
        target = link_target(self.link)
        if target is None and self.link.exists():
            raise RunError(f"{self.link} is not a link to a trained model; move it away")
        return target

    def _write_history(self, history: Sequence[Record]) -> None:
        lines = "".join(json.dumps(record) + "\n" for record in history)
        write_atomically(self.folder / "history.jsonl", lines.encode())
        table = io.StringIO()
        writer = csv.DictWriter(table, list(history[0]))
        writer.writeheader()
        writer.writerows(history)
        write_atomically(self.folder / "history.csv", table.getvalue().encode())


def link_target(link: Path) -> str | None:
    """Return the name of the folder that `runs/<recipe>/<model>` leads to, None if that path is not such a link."""
    if link.is_symlink():
        return str(link.readlink())
    if not link.is_file() or link.stat().st_size > LONGEST_NAME:
        return None
    content = link.read_bytes().decode(errors="replace").strip()
    return content if re.fullmatch(re.escape(link.name) + "-[0-9a-f]{8}", content) else None


def current_folder(root: Path, name: str) -> Path:
    """Return the folder that `root/name` leads to."""
    return root / (link_target(root / name) or name)


def current_models(root: Path) -> list[str]:
    """Return the names of all models that a run has a link to."""
    return [path.name for path in sorted(root.glob("*")) if link_target(path)]


def read_history(folder: Path) -> list[Record]:
    """Return the records of a model's epochs. Raises `RunError` if there are none."""
    try:
        lines = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise RunError(f"there is no history in {folder}; train it with distillery-train") from None
    return [json.loads(line) for line in lines]
