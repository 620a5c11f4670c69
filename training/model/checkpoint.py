"""A trained network in one file: safetensors, with a card (JSON in the file's metadata) that says what it is.

    checkpoint = load_checkpoint(Path("runs/quick/student/model.safetensors"))
    checkpoint.network      in eval mode on the CPU
    checkpoint.card         name, architecture, recipe, dataset, tools, epoch, validation_errors, parameters, seconds

No pickle: a checkpoint from a stranger can be wrong, but it cannot run code.
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
from training.model.files import write_atomically
from training.model.network import Network, build
from training.recipe.schema import Architecture

METADATA = "distillery"
CURE = "delete it and train again"
CARD_FIELDS = {
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
    """A file that is no checkpoint, is cut short, or holds a network of another shape."""


@dataclass(frozen=True)
class Checkpoint:
    """A network and what is known about it."""

    network: Network
    card: dict[str, Any]


def save_checkpoint(path: Path, weights: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write `weights` (a network's `state_dict`) and its card to `path`, whole or not at all."""
    if wrong := _wrong_fields(dict(card)):
        raise ValueError(f"the card's {wrong[0]!r} is {card.get(wrong[0])!r}")
    save_tensors(path, weights, card)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a network and its card. Raises `CheckpointError` naming what was found."""
    weights, card = load_tensors(path)
    if wrong := _wrong_fields(card):
        raise CheckpointError(
            f"{path} is no checkpoint of distillery-train as it is now: "
            f"its card's {wrong[0]!r} is {card.get(wrong[0])!r}; {CURE}"
        )
    architecture = Architecture(**card["architecture"])
    with torch.device("meta"):  # shapes without memory: a card may claim any size
        network = build(architecture)
    expected = network.state_dict()
    if weights.keys() != expected.keys():
        names = sorted(weights.keys() ^ expected.keys())
        raise CheckpointError(
            f"{path} holds another network than its card's {architecture}: {names[0]} differs; {CURE}"
        )
    for name, tensor in weights.items():
        if (tensor.shape, tensor.dtype) != (expected[name].shape, expected[name].dtype):
            raise CheckpointError(
                f"{path}: {name} is {tensor.dtype} {list(tensor.shape)}, "
                f"the card's network needs {expected[name].dtype} {list(expected[name].shape)}; {CURE}"
            )
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds values that are not finite; {CURE}")
    network.load_state_dict(weights, assign=True)
    return Checkpoint(network.eval().requires_grad_(requires_grad=False), card)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write named tensors, and JSON facts beside them, to `path`, whole or not at all."""
    cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(cpu, {METADATA: json.dumps(facts, sort_keys=True)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote. Raises `CheckpointError`."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[METADATA])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is cut short or no safetensors file ({error}); {CURE}") from None
    except (KeyError, ValueError):
        raise CheckpointError(f"{path} was not written by distillery-train: it has no card") from None
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path} was not written by distillery-train: its card is {facts!r}")
    return tensors, facts


def _wrong_fields(card: dict[str, Any]) -> list[str]:
    wrong = [name for name, kind in CARD_FIELDS.items() if not isinstance(card.get(name), kind)]
    if wrong:
        return wrong
    try:
        Architecture.model_validate(card["architecture"], strict=True)
    except ValidationError:
        return ["architecture"]
    return []
