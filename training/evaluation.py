"""The test digits' one use: count what each finished model of a run gets wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from training.checkpoint import load_checkpoint
from training.data import Digits
from training.files import sha256, write_atomically
from training.loop import predict
from training.network import CLASSES, MLP
from training.pipeline import MODELS
from training.runs import RunError

EVALUATION = "evaluation.json"
CARD_FIELDS = (
    "hidden",
    "parameters",
    "epoch",
    "validation_errors",
    "seconds",
    "recipe",
    "dataset",
    "tools",
    "fingerprint",
)


def evaluate(network: MLP, test: Digits) -> dict[str, Any]:
    """Return errors, accuracy, loss (nats), the confusion matrix and every mistake, the surest one first.

    `confusion[label][answer]` counts digits; a mistake has the digit's place in the test set, its label, the
    answer, and the probability the network gave it.
    """
    logits = predict(network, test.images)
    probabilities, answers = torch.softmax(logits, dim=1).max(dim=1)
    wrong = torch.nonzero(answers != test.labels).flatten()
    wrong = wrong[probabilities[wrong].argsort(descending=True, stable=True)]
    confusion = torch.bincount(test.labels * CLASSES + answers, minlength=CLASSES**2).reshape(
        CLASSES, CLASSES
    )
    return {
        "errors": len(wrong),
        "accuracy": 1 - len(wrong) / len(test),
        "loss": functional.cross_entropy(logits, test.labels).item(),
        "confusion": confusion.tolist(),
        "mistakes": [
            {
                "index": index,
                "label": int(test.labels[index]),
                "answer": int(answers[index]),
                "probability": round(float(probabilities[index]), 6),
            }
            for index in wrong.tolist()
        ],
    }


def evaluate_run(root: Path, read_test: Callable[[], Digits]) -> dict[str, dict[str, Any]]:
    """Evaluate every current model in `root`, write `evaluation.json`, return it.

    The test digits are not read again for checkpoints that have been evaluated. Raises `RunError` for a model
    that is missing.
    """
    paths = {name: root / name / "model.safetensors" for name in MODELS}
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
