"""The test digits' one use: count what each finished model of a run gets wrong."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from training.data.mnist import Digits
from training.evaluation.metrics import score
from training.loop.trainer import predict
from training.model.checkpoint import load_checkpoint
from training.model.files import sha256, write_atomically
from training.model.network import Network
from training.runs.folder import RunError

EVALUATION = "evaluation.json"
CARD_FIELDS = (
    "architecture",
    "parameters",
    "epoch",
    "validation_errors",
    "seconds",
    "recipe",
    "dataset",
    "tools",
    "fingerprint",
)


def evaluate(network: Network, test: Digits) -> dict[str, Any]:
    """Return what `score` says of the network's answers to the test digits."""
    return score(predict(network, test.images), test.labels)


def evaluate_run(
    root: Path, names: Sequence[str], read_test: Callable[[], Digits]
) -> dict[str, dict[str, Any]]:
    """Evaluate the models of these names in `root`, write `evaluation.json`, return it.

    The test digits are not read again for checkpoints that have been evaluated. Raises `RunError` for a model
    that is missing.
    """
    paths = {name: root / name / "model.safetensors" for name in names}
    if missing := [name for name, path in paths.items() if not path.exists()]:
        raise RunError(f"{root} has no finished {missing[0]}; train it with distillery-train")
    hashes = {name: sha256(path.read_bytes()) for name, path in paths.items()}
    kept = root / EVALUATION
    if kept.exists():
        known: dict[str, dict[str, Any]] = json.loads(kept.read_bytes())
        if {name: model["sha256"] for name, model in known.items()} == hashes:
            return known
    evaluation, test = {}, read_test()
    for name, path in paths.items():
        checkpoint = load_checkpoint(path)
        card = {field: checkpoint.card[field] for field in CARD_FIELDS if field in checkpoint.card}
        evaluation[name] = evaluate(checkpoint.network, test) | card | {"sha256": hashes[name]}
    write_atomically(kept, (json.dumps(evaluation) + "\n").encode())
    return evaluation
