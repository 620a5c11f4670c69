"""The commands that write files: what each of them must have made in the end, and what must hold at any moment."""

import csv
import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from safetensors import safe_open

from benchmarks.results.files import read_result
from serving.model.repository import load_model
from tests.support.forkserver import Forked, ForkServer
from tests.support.service import running_service
from training.model.checkpoint import load_checkpoint

RECIPE = """
[teacher]
hidden = [32]
epochs = 3
batch_size = 50
learning_rate = 0.01
augmentation = { shift = 2 }
views = 2

[student]
hidden = [16]
epochs = 3
batch_size = 50
learning_rate = 0.01
augmentation = { shift = 2 }
views = 2

[student.distillation]
temperature = 4
"""
MODELS = ("teacher", "student-alone", "student")
TRIALS = 3


@dataclass(frozen=True)
class Case:
    """One command. `arguments` and `result` take the folder that it writes to."""

    program: str
    arguments: Callable[[Path], list[str]]
    result: Callable[[Path], Any]
    """What two runs must have equal."""
    seconds: float = 0
    """The time it took undisturbed."""
    made: Path = Path()
    """The folder it wrote to undisturbed."""
    expected: Any = None
    """Its result there."""

    def start(self, server: ForkServer, folder: Path, **options: Any) -> Forked:
        """Start it in a process of its own."""
        return server.run(self.program, *self.arguments(folder), **options)


@contextmanager
def run_cases(server: ForkServer, folder: Path) -> Iterator[dict[str, Case]]:
    """Run every command once, and yield them; while a service runs for the benchmark."""
    recipe = folder / "small.toml"
    recipe.write_text(RECIPE)
    place = ["--recipe", str(recipe), "--threads", "1", "--precision", "float32", "--out"]
    sweep = ["sweep", "--trials", str(TRIALS), "--space.hidden", "16,8", *place]
    checkpoint = folder / "train/small/student/model.safetensors"
    export = ["--checkpoint", str(checkpoint), "--name", "student", "--int8", "student", "--models-dir"]
    bench = ["http", "--models-dir", str(folder / "export"), "--models", "student", "--body", "json"]
    bench += ["--connections", "1", "--rounds", "2", "--seconds", "0.1", "--tool", "python"]

    def run(name: str, program: str, arguments: list[str], result: Callable[[Path], Any]) -> Case:
        case = Case(program, lambda out: [*arguments, str(out)], result)
        start = time.monotonic()
        command = case.start(server, folder / name)
        assert command.wait() == 0, command.errors
        seconds = time.monotonic() - start
        return replace(case, seconds=seconds, made=folder / name, expected=result(folder / name))

    cases = {
        "train": run("train", "distillery-train", place, weights),
        "export": run("export", "distillery-export", export, graphs),
        "sweep": run("sweep", "distillery-train", sweep, first_trial),
    }
    with running_service(folder / "export", "--api-servers", "1") as service:
        bench += ["--url", service.url, "--results-dir"]
        yield cases | {"benchmark": run("benchmark", "distillery-bench", bench, kinds_of_results)}


def weights(out: Path) -> dict[str, bytes]:
    """Return the weights of every model of a finished training."""
    root, found = out / "small", {}
    for name in MODELS:
        network = load_checkpoint(root / name / "model.safetensors").network
        values = sorted(network.state_dict().items())
        found[name] = b"".join(value.numpy().tobytes() for _, value in values)
        assert len((root / name / "history.jsonl").read_text().splitlines()) == 3
        assert not (root / name / "state.safetensors").exists()
    assert {file.stem for file in (root / "figures").iterdir()} == {"curves", "digits", "soft_targets"}
    return found


def graphs(models_dir: Path) -> dict[str, bytes]:
    """Return the graph of every published model."""
    folders = sorted(models_dir.glob("[!.]*"))
    return {folder.name: load_model(folder / "1").path.read_bytes() for folder in folders}


def first_trial(out: Path) -> dict[str, str]:
    """Return the first trial of a finished sweep, with the recipe's settings; interruptions may change the others."""
    folder = out / "small" / "sweep" / "student"
    rows = list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))
    assert len(rows) == json.loads((folder / "sweep.json").read_bytes())["trials"] == TRIALS
    trained = [load_checkpoint(file).metadata for file in out.glob("small/student-*/model.safetensors")]
    assert {int(row["validation_errors"]) for row in rows} <= {
        model["validation_errors"] for model in trained
    }
    return {
        name: value for name, value in rows[0].items() if name != "trial"
    }  # its number counts those given up


def kinds_of_results(results_dir: Path) -> set[str]:
    """Return the kinds of all results."""
    return {read_result(file)["kind"] for file in results_dir.glob("*.json")}


def check_files(folder: Path) -> dict[Path, int]:
    """Read every file in `folder` whose name is not hidden; return the inodes of networks and results."""
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            assert path.suffix in CHECKS, path
            CHECKS[path.suffix](path)
    return {path: path.stat().st_ino for path in [*folder.rglob("model.safetensors"), *folder.glob("http-*")]}


def _check_tensors(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118


def _check_lines(path: Path) -> None:
    assert all(json.loads(line) for line in path.read_text().splitlines())


def _check_table(path: Path) -> None:
    assert list(csv.DictReader(path.read_text().splitlines()))


def _check_image(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def _check_graph(path: Path) -> None:
    load_model(path.parent)
    assert path.parent.with_name("config.pbtxt").read_text().endswith("}\n")


def _check_model(path: Path) -> None:
    assert list(path.parent.glob("*/model.onnx"))


def _check_database(path: Path) -> None:
    """Read a copy, with the journal from which an interrupted transaction is undone."""
    with TemporaryDirectory() as folder:
        for file in path.parent.glob(f"{path.name}*"):
            shutil.copy(file, folder)
        with closing(sqlite3.connect(Path(folder) / path.name)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


CHECKS: dict[str, Callable[[Path], object]] = {
    ".safetensors": _check_tensors,
    ".json": lambda path: json.loads(path.read_bytes()),
    ".jsonl": _check_lines,
    ".csv": _check_table,
    ".png": _check_image,
    ".onnx": _check_graph,
    ".pbtxt": _check_model,
    ".db": _check_database,
    ".db-journal": Path.stat,
}
"""Reads a file of a command, by its suffix; raises an error where it is not whole."""


def resume(case: Case, server: ForkServer, place: Path, seen: Path | None = None) -> None:
    """Run an interrupted command again; assert that it ends as undisturbed and keeps what was finished.

    `place` is the folder as the command sees it, `seen` as this process does, if not the same.
    """
    folder = seen or place
    finished = check_files(folder)
    command = case.start(server, place)
    assert command.wait() == 0, command.errors
    assert case.result(folder) == case.expected
    for path, inode in finished.items():
        assert path.stat().st_ino == inode, f"{path} was made again"
    check_files(folder)
    assert leftovers(folder) == []


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary files and folders in `folder`."""
    return [path for path in folder.rglob(".*") if path.name != ".lock"]
