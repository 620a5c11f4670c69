"""A checkpoint says what it is, and one that is not whole or not ours is refused with the reason."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from training.files import write_atomically
from training.network import MLP

CARD: dict[str, Any] = {
    "name": "student",
    "hidden": [12, 8],
    "recipe": {"seed": 3},
    "dataset": {},
    "tools": {},
    "epoch": 4,
    "validation_errors": 17,
    "parameters": 1,
    "seconds": 2.5,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, MLP([12, 8]).state_dict(), CARD)
    return path


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    network = MLP([12, 8]).eval()
    save_checkpoint(tmp_path / "new" / "model.safetensors", network.state_dict(), CARD)
    checkpoint = load_checkpoint(tmp_path / "new" / "model.safetensors")
    assert checkpoint.card == CARD
    assert not checkpoint.network.training
    image = torch.randn(3, 784)
    assert torch.equal(checkpoint.network(image), network(image))


@pytest.mark.parametrize("size", [0, 4, 100, 2000, -1])
def test_a_file_cut_short_is_refused(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="cut short or no safetensors"):
        load_checkpoint(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*gone\.safetensors"):
        load_checkpoint(tmp_path / "gone.safetensors")


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path)


class Bomb:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("exploded",)


def test_a_pickle_is_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError):
        load_checkpoint(Path("model.safetensors"))
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": [12, 9]}, "the card's network needs torch.float32 .9"),
        ({"hidden": [12]}, "holds another network than its card's .12."),
        ({"hidden": [65_537]}, "card's 'hidden' is .65537."),
        ({"hidden": [2**16] * 16}, "holds another network"),  # 256 GiB, were it made before it is compared
        ({"hidden": ["12"]}, "card's 'hidden'"),
        ({"epoch": "4"}, "card's 'epoch' is '4'"),
        ({"recipe": None}, "card's 'recipe' is None"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file(MLP([12, 8]).state_dict(), path, {"distillery": json.dumps(CARD | change)})
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


@pytest.mark.parametrize("metadata", [None, {"other": "{}"}, {"distillery": "{"}, {"distillery": "[1]"}])
def test_a_file_without_a_card_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "model.safetensors"
    save_file(MLP([12, 8]).state_dict(), path, metadata)
    with pytest.raises(CheckpointError, match="was not written by distillery-train"):
        load_checkpoint(path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    weights = MLP([12, 8]).state_dict()
    weights["output.bias"][3] = torch.nan
    save_checkpoint(tmp_path / "model.safetensors", weights, CARD)
    with pytest.raises(CheckpointError, match=r"output\.bias holds values that are not finite"):
        load_checkpoint(tmp_path / "model.safetensors")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, f"No space left on device {descriptor}")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"half")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
