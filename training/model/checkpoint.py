"""A trained network in one safetensors file, described by JSON in the file's metadata.

    checkpoint = load_checkpoint(Path("runs/quick/student/model.safetensors"))
    checkpoint.network      in eval mode on the CPU
    checkpoint.metadata     name, architecture, recipe, dataset, tools, epoch, validation_errors, parameters, seconds

Not a pickle: a file from an untrusted source can be wrong, but cannot run code.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from distillery import DistilleryError
from distillery.files import write_atomically
from training.model.network import Network, build
from training.recipe.schema import Architecture

METADATA = "distillery"
"""The key of the JSON in the metadata of the safetensors file."""
FIX = "delete it and train again"
FIELDS = {
    "name": str,
    "architecture": dict,
    "recipe": dict,
    "dataset": dict,
    "tools": dict,
    "epoch": int,
    "validation_errors": int,
    "parameters": int,
    "seconds": float,
}


class CheckpointError(DistilleryError):
    """A file that is not a checkpoint, is truncated, or holds a network of another shape."""


@dataclass(frozen=True)
class Checkpoint:
    """A network and its metadata."""

    network: Network
    metadata: dict[str, Any]


def save_checkpoint(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write `weights` (a network's `state_dict`) and its metadata to `path`, atomically."""
    if wrong := _wrong_fields(dict(metadata)):
        raise ValueError(f"metadata {wrong[0]!r} is {metadata.get(wrong[0])!r}")
    save_tensors(path, weights, metadata)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a network, in evaluation mode on the CPU, and its metadata. Raises `CheckpointError`."""
    weights, metadata = load_tensors(path)
    if wrong := _wrong_fields(metadata):
        raise CheckpointError(
            f"{path} is not a checkpoint of this version of distillery-train: "
            f"its metadata {wrong[0]!r} is {metadata.get(wrong[0])!r}; {FIX}"
        )
    architecture = Architecture(**metadata["architecture"])
    with torch.device("meta"):  # shapes without memory: metadata may claim any size
        network = build(architecture)
    expected = network.state_dict()
    if weights.keys() != expected.keys():
        names = sorted(weights.keys() ^ expected.keys())
        raise CheckpointError(
            f"{path} holds another network than its metadata's {architecture}: {names[0]} differs; {FIX}"
        )
    for name, tensor in weights.items():
        if (tensor.shape, tensor.dtype) != (expected[name].shape, expected[name].dtype):
            raise CheckpointError(
                f"{path}: {name} is {tensor.dtype} {list(tensor.shape)}, "
                f"expected {expected[name].dtype} {list(expected[name].shape)}; {FIX}"
            )
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds values that are not finite; {FIX}")
    network.load_state_dict(weights, assign=True)
    return Checkpoint(network.eval().requires_grad_(requires_grad=False), metadata)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors by name, and metadata as JSON, to `path`, atomically."""
    cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(cpu, {METADATA: json.dumps(metadata, sort_keys=True)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote. Raises `CheckpointError`."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[METADATA])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file ({error}); {FIX}") from None
    except (KeyError, ValueError):
        raise CheckpointError(f"{path} was not written by distillery-train: it has no metadata") from None
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path} was not written by distillery-train: its metadata is {metadata!r}")
    return tensors, metadata


def _wrong_fields(metadata: dict[str, Any]) -> list[str]:
    wrong = [name for name, kind in FIELDS.items() if not isinstance(metadata.get(name), kind)]
    if wrong:
        return wrong
    try:
        Architecture.model_validate(metadata["architecture"], strict=True)
    except ValidationError:
        return ["architecture"]
    return []
