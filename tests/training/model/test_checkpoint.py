"""A checkpoint describes itself; a truncated or foreign one is rejected with the reason."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support.training.trainings import same
from training.model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from training.model.network import build
from training.recipe.schema import Architecture

SHAPE = Architecture(hidden=[12, 8])
METADATA: dict[str, Any] = {
    "name": "student",
    "architecture": SHAPE.model_dump(),
    "recipe": {"seed": 3},
    "dataset": {},
    "tools": {},
    "epoch": 4,
    "validation_errors": 17,
    "parameters": 1,
    "seconds": 2.5,
}


def shaped(**change: Any) -> dict[str, Any]:
    """The metadata field of another shape."""
    return {"architecture": SHAPE.model_dump() | change}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, build(SHAPE).state_dict(), METADATA)
    return path


@pytest.mark.parametrize(
    "shape",
    [SHAPE, Architecture(hidden=[8], norm=False), Architecture(stages=[[3, 4], [5]], hidden=[6], members=2)],
    ids=str,
)
def test_a_checkpoint_loads_as_it_was_saved(tmp_path: Path, shape: Architecture) -> None:
    network, metadata = build(shape).eval(), METADATA | {"architecture": shape.model_dump()}
    save_checkpoint(tmp_path / "new" / "model.safetensors", network.state_dict(), metadata)
    checkpoint = load_checkpoint(tmp_path / "new" / "model.safetensors")
    assert checkpoint.metadata == metadata
    assert not checkpoint.network.training
    assert same(checkpoint.network.state_dict(), network.state_dict())
    image = torch.randn(3, 784)
    # to the last bit only where the tensors are aligned in memory as the others are
    torch.testing.assert_close(checkpoint.network(image), network(image))


@pytest.mark.parametrize("size", [0, 4, 100, 2000, -1])
def test_a_truncated_file_is_rejected(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(
        CheckpointError, match=r"truncated or not a safetensors file .*; delete it and train again"
    ):
        load_checkpoint(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*gone\.safetensors"):
        load_checkpoint(tmp_path / "gone.safetensors")


def test_a_folder_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path)


class Bomb:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("exploded",)


def test_a_pickle_is_rejected_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError):
        load_checkpoint(Path("model.safetensors"))
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shaped(hidden=[12, 9]), "expected torch.float32 .9"),
        (shaped(hidden=[12]), "holds another network than its metadata's 784-12-10: hidden.1"),
        (shaped(members=2), "holds another network than its metadata's 2 × 784-12-8-10"),
        (shaped(stages=[[4]]), "holds another network than its metadata's 784-conv4-12-8-10"),
        (shaped(norm=False), "holds another network than its metadata's 784-12-8-10: hidden.0.norm"),
        (shaped(hidden=[65_537]), "metadata 'architecture' is .*65537"),
        (shaped(hidden=[2**16] * 16), "holds another network"),  # 256 GiB, were it made before it is compared
        (shaped(hidden=["12"]), "metadata 'architecture' is"),
        (shaped(members=True), "metadata 'architecture' is"),
        (shaped(heads=8), "metadata 'architecture' is .*'heads': 8"),
        ({"architecture": [12, 8]}, r"metadata 'architecture' is \[12, 8\]"),
        (
            {"architecture": None, "hidden": [12, 8]},
            "metadata 'architecture' is None; delete it and train again",
        ),
        ({"epoch": "4"}, "metadata 'epoch' is '4'"),
        ({"recipe": None}, "metadata 'recipe' is None"),
    ],
)
def test_metadata_that_does_not_fit_is_rejected(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file(build(SHAPE).state_dict(), path, {"distillery": json.dumps(METADATA | change)})
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


@pytest.mark.parametrize("metadata", [None, {"other": "{}"}, {"distillery": "{"}, {"distillery": "[1]"}])
def test_a_file_without_metadata_is_rejected(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "model.safetensors"
    save_file(build(SHAPE).state_dict(), path, metadata)
    with pytest.raises(CheckpointError, match="was not written by distillery-train"):
        load_checkpoint(path)


def test_weights_that_are_not_finite_are_rejected(tmp_path: Path) -> None:
    weights = build(SHAPE).state_dict()
    weights["output.bias"][3] = torch.nan
    save_checkpoint(tmp_path / "model.safetensors", weights, METADATA)
    with pytest.raises(CheckpointError, match=r"output\.bias holds values that are not finite"):
        load_checkpoint(tmp_path / "model.safetensors")
