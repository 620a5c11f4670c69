"""What finished models answer to the test digits: each is asked once, and its evidence stays beside its weights.

`evidence.json` in a model's folder says which weights it is of. So a second report reads no test digits.
"""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from training.data.mnist import Digits
from training.evaluation.corruptions import CORRUPTIONS
from training.evaluation.metrics import Predict, collect_evidence, score
from training.loop.device import Device
from training.loop.trainer import predict
from training.model.checkpoint import load_checkpoint
from training.model.network import Network, normalise
from training.runs.folder import RunError
from training.runs.pipeline import DataSet
from training.runs.trained import Trained
from training.storage import sha256, write_atomically

EVIDENCE = "evidence.json"
REVISION = 1
"""Raised whenever the same answers come to give other evidence, so that older evidence is not taken for it."""
BATCH = 1_000


class Examination:
    """Asks models, and remembers what they answered.

    `robustness_digits`: how many test digits are corrupted, all if None. The plain digits are answered in full
    precision on the CPU, as `evaluate` has it; the corrupted ones, 35 times as many, as `device` is quickest.
    """

    def __init__(
        self,
        read_test: Callable[[], Digits],
        read_training: Callable[[], DataSet],
        *,
        device: Device,
        robustness_digits: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._read_test, self._read_training = read_test, read_training
        self.device, self.robustness_digits = device, robustness_digits
        self.progress = progress or Progress(disable=True)
        self._logits: dict[str, Tensor] = {}

    def errors(self, one: Trained) -> dict[str, Any]:
        """Return what `score` says of the model's answers, at least."""
        digest = sha256(one.checkpoint.read_bytes())
        return self._kept(
            one, {"sha256": digest}, lambda: score(self._answers(one, digest), self.test.labels)
        )

    def evidence(self, one: Trained) -> dict[str, Any]:
        """Return what `collect_evidence` says, and how many `digits` there were to learn, to validate and to test."""
        teacher = one.teacher
        of = {
            "sha256": sha256(one.checkpoint.read_bytes()),
            "teacher_sha256": sha256(teacher.checkpoint.read_bytes()) if teacher else None,
            "robustness_digits": self.robustness_digits,
            "device": self.device.type,
            "bfloat16": self.device.bfloat16,
        }
        return self._kept(one, of, lambda: self._collect(one, teacher, of))

    @cached_property
    def test(self) -> Digits:
        """The test digits, read when they are first needed."""
        return self._read_test()

    @cached_property
    def _data(self) -> DataSet:
        return self._read_training()

    def _kept(
        self, one: Trained, of: dict[str, Any], collect: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        file, of = one.folder / EVIDENCE, of | {"revision": REVISION}
        if file.exists():
            known: dict[str, Any] = json.loads(file.read_bytes())
            if of.items() <= known["of"].items():
                return known
        found = {"of": of, **collect()}
        write_atomically(file, (json.dumps(found) + "\n").encode())
        return found

    def _collect(self, one: Trained, teacher: Trained | None, of: dict[str, Any]) -> dict[str, Any]:
        network, validation = load_checkpoint(one.checkpoint).network, self._data.validation
        validation_logits = predict(network, validation.images)
        logits = self._answers(one, of["sha256"])
        steps = sum(len(corruption.amounts) for corruption in CORRUPTIONS.values())
        task = self.progress.add_task(f"{one.name}: corrupted digits", total=steps)
        evidence = collect_evidence(
            self._quickly(network, lambda: self.progress.advance(task)),
            self.test.images,
            self.test.labels,
            logits,
            validation_labels=validation.labels,
            validation_logits=validation_logits,
            teacher_logits=self._answers(teacher, of["teacher_sha256"]) if teacher else None,
            robustness_digits=self.robustness_digits,
        )
        self.progress.console.print(f"{one.name}: {evidence['errors']} test errors, seed {one.seed}")
        return evidence | {
            "digits": {
                "training": len(self._data.training),
                "validation": len(validation),
                "test": len(self.test),
            }
        }

    def _answers(self, one: Trained, digest: str) -> Tensor:
        if digest not in self._logits:  # a teacher is compared with each of its students
            self._logits[digest] = predict(load_checkpoint(one.checkpoint).network, self.test.images)
        return self._logits[digest]

    def _quickly(self, network: Network, asked: Callable[[], None]) -> Predict:
        network = network.to(self.device.type)

        def ask(images: Tensor) -> Tensor:
            with torch.no_grad(), self.device.autocast():
                batches = [batch.to(self.device.type) for batch in torch.split(images, BATCH)]
                logits = torch.cat([network(normalise(batch)).float() for batch in batches])
            asked()
            return logits.cpu()

        return ask


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
    "cache_key",
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
        card = {field: checkpoint.metadata[field] for field in CARD_FIELDS if field in checkpoint.metadata}
        evaluation[name] = evaluate(checkpoint.network, test) | card | {"sha256": hashes[name]}
    write_atomically(kept, (json.dumps(evaluation) + "\n").encode())
    return evaluation
