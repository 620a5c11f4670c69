"""Evaluation of trained models on the test digits; every model is evaluated once.

The metrics are kept in `metrics.json` next to the weights, together with what they were computed from, so the test
digits are read again only for new models.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillery.files import require_writable, sha256, write_atomically
from training.data.mnist import Digits
from training.evaluation.corruptions import CORRUPTIONS
from training.evaluation.metrics import Predict, all_metrics, error_metrics
from training.loop.device import Device
from training.loop.trainer import predict
from training.model.checkpoint import load_checkpoint
from training.model.network import Network, normalise
from training.runs.pipeline import DataSet
from training.runs.trained import Trained, current_model

EVALUATION = "evaluation.json"
"""In a run's folder: the errors of its models."""
METRICS = "metrics.json"
"""In a model's folder: all its metrics."""
REVISION = 2
"""To be raised when the same logits give other metrics."""
METADATA_FIELDS = (
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
"""Of a checkpoint's metadata, what an evaluation repeats."""
BATCH = 1_000
OnStep = Callable[[str, int, int], None]
"""Receives the progress of a longer evaluation: its name, steps done, steps in total."""


def evaluate(network: Network, test: Digits) -> dict[str, Any]:
    """Return the `error_metrics` of a network on the test digits."""
    return error_metrics(predict(network, test.images), test.labels)


class Evaluator:
    """Computes the metrics of models, or reads those kept next to their weights.

    `read_test` and `read_training` load the digits when they are first needed. `robustness_digits`: number of test
    digits to corrupt, all if None. Undistorted digits are evaluated on the CPU in float32; the corrupted ones, 35 times
    as many, on `device` in its precision.
    """

    def __init__(
        self,
        read_test: Callable[[], Digits],
        read_training: Callable[[], DataSet],
        *,
        device: Device,
        robustness_digits: int | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        self._read_test, self._read_training = read_test, read_training
        self.device, self.robustness_digits = device, robustness_digits
        self._on_step = on_step or (lambda *_: None)
        self._logits: dict[str, Tensor] = {}

    def errors(self, model: Trained) -> dict[str, Any]:
        """Return the `error_metrics` of a model, and further ones if they are known."""
        digest = sha256(model.checkpoint.read_bytes())

        def compute() -> dict[str, Any]:
            return error_metrics(self._test_logits(model, digest), self.test.labels)

        return self._kept(model, {"sha256": digest}, compute)

    def metrics(self, model: Trained) -> dict[str, Any]:
        """Return `all_metrics` of a model, and the number of `digits` in the training, validation and test sets."""
        teacher = model.teacher
        of = {
            "sha256": sha256(model.checkpoint.read_bytes()),
            "teacher_sha256": sha256(teacher.checkpoint.read_bytes()) if teacher else None,
            "robustness_digits": self.robustness_digits,
            "device": self.device.type,
            "bfloat16": self.device.bfloat16,
        }
        return self._kept(model, of, lambda: self._compute(model, teacher, of))

    @cached_property
    def test(self) -> Digits:
        """The test digits."""
        return self._read_test()

    @cached_property
    def _data(self) -> DataSet:
        return self._read_training()

    def _kept(
        self, model: Trained, of: dict[str, Any], compute: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        file, of = model.folder / METRICS, of | {"revision": REVISION}
        with suppress(FileNotFoundError, ValueError):  # ValueError: damaged, and computed again
            known: dict[str, Any] = json.loads(file.read_bytes())
            if of.items() <= known["of"].items():
                return known
        require_writable(model.folder)
        found = {"of": of, **compute()}
        write_atomically(file, (json.dumps(found) + "\n").encode())
        return found

    def _compute(self, model: Trained, teacher: Trained | None, of: dict[str, Any]) -> dict[str, Any]:
        network, validation = load_checkpoint(model.checkpoint).network, self._data.validation
        validation_logits = predict(network, validation.images)
        logits = self._test_logits(model, of["sha256"])
        metrics = all_metrics(
            self._fast_predict(network, f"{model.name}: corrupted digits"),
            self.test.images,
            self.test.labels,
            logits,
            validation_labels=validation.labels,
            validation_logits=validation_logits,
            teacher_logits=self._test_logits(teacher, of["teacher_sha256"]) if teacher else None,
            robustness_digits=self.robustness_digits,
        )
        sizes = {"training": self._data.training, "validation": validation, "test": self.test}
        return metrics | {"digits": {name: len(digits) for name, digits in sizes.items()}}

    def _test_logits(self, model: Trained, digest: str) -> Tensor:
        if digest not in self._logits:  # a teacher is compared with each of its students
            self._logits[digest] = predict(load_checkpoint(model.checkpoint).network, self.test.images)
        return self._logits[digest]

    def _fast_predict(self, network: Network, task: str) -> Predict:
        network, done = network.to(self.device.type), 0
        total = sum(len(corruption.amounts) for corruption in CORRUPTIONS.values())

        def fast_predict(images: Tensor) -> Tensor:
            nonlocal done
            with torch.no_grad(), self.device.autocast():
                batches = [batch.to(self.device.type) for batch in torch.split(images, BATCH)]
                logits = torch.cat([network(normalise(batch)).float() for batch in batches])
            done += 1
            self._on_step(task, done, total)
            return logits.cpu()

        return fast_predict


def evaluate_run(root: Path, names: Sequence[str], evaluator: Evaluator) -> dict[str, dict[str, Any]]:
    """Evaluate the current models `names` of the run in `root`; write and return `evaluation.json`.

    Per model the `error_metrics`, the `sha256` of the weights and `METADATA_FIELDS`. Raises `RunError` for a missing
    model.
    """
    evaluation = {}
    models = {name: current_model(root, name) for name in names}
    for name, model in models.items():
        metrics, metadata = evaluator.errors(model), load_checkpoint(model.checkpoint).metadata
        evaluation[name] = {
            key: metrics[key] for key in ("errors", "accuracy", "loss", "confusion", "misclassified")
        }
        evaluation[name] |= {field: metadata[field] for field in METADATA_FIELDS if field in metadata}
        evaluation[name]["sha256"] = metrics["of"]["sha256"]
    file, content = root / EVALUATION, (json.dumps(evaluation) + "\n").encode()
    if not file.exists() or file.read_bytes() != content:  # its date says whether figures are out of date
        write_atomically(file, content)
    return evaluation
