"""A small run, trained once and shared: teacher, student and control with two seeds, evaluated."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

import pytest
import torch

import distillery
from tests.conftest import made_once
from tests.support.training.samples import samples_as_mnist
from training.__main__ import COMMANDS

RECIPE = """
[teacher]
hidden = [32]
epochs = 4
batch_size = 50
learning_rate = 1e-2
augmentation = { shift = 1 }

[student]
hidden = [16]
epochs = 4
batch_size = 50
learning_rate = 1e-2

[student.distillation]
temperature = 4
"""


def call(*arguments: str | Path) -> int:
    """Run `distillery-train` in this process."""
    return distillery.main(
        "distillery-train", COMMANDS, default="train", arguments=[str(a) for a in arguments]
    )


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """Write files without waiting for the disk: that is slow, and useful only against power failures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The sample digits as MNIST in a fresh folder, which is the current one; returns the folder of the digits."""
    monkeypatch.chdir(tmp_path)
    _settings(monkeypatch, tmp_path)
    with samples_as_mnist(tmp_path / "mnist"):
        yield tmp_path / "mnist"


@dataclass(frozen=True)
class SmallRun:
    """A trained and evaluated run: `folder` holds small.toml, mnist and runs; `output` is what training printed."""

    folder: Path
    output: str

    @property
    def root(self) -> Path:
        return self.folder / "runs" / "small"


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """The recipe small, trained with seeds 0 (the current one) and 1, and evaluated."""
    folder = (
        tmp_path_factory.mktemp("small") / "run"
    )  # each process of pytest-xdist has its own: `report` adds to it
    copytree(made_once(tmp_path_factory, "small", _train), folder, symlinks=True)
    return SmallRun(folder, (folder / "output").read_text())


def _train(folder: Path) -> None:
    (folder / "small.toml").write_text(RECIPE)
    threads, output = torch.get_num_threads(), io.StringIO()
    with inside(folder), redirect_stdout(output):
        assert call("--recipe=small.toml", "--seeds=1") == 0
        assert call("evaluate", "--recipe=small.toml") == 0
    torch.set_num_threads(threads)
    (folder / "output").write_text(output.getvalue())


@pytest.fixture
def small_run(trained_run: SmallRun) -> Iterator[SmallRun]:
    """`trained_run` in its own folder, with its settings in the environment; leave it as it was."""
    with inside(trained_run.folder):
        yield trained_run


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Make `folder` the current one, and its digits and runs those of the commands."""
    with pytest.MonkeyPatch.context() as patch, samples_as_mnist(folder / "mnist"):
        patch.chdir(folder)
        _settings(patch, folder)
        yield


def _settings(patch: pytest.MonkeyPatch, folder: Path) -> None:
    settings = {"OUT": folder / "runs", "PRECISION": "float32", "THREADS": 1}
    for name, value in settings.items():
        patch.setenv(f"DISTILLERY_{name}", str(value))
    patch.setenv("COLUMNS", "200")
