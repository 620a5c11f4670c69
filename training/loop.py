"""The training loop: resident digits, one network, epochs that can be stopped and taken up again.

All randomness of an epoch comes from a seed made of the recipe's seed, the network's role and the epoch, and the
learning rate is a function of the epochs so far. So the state between two epochs is weights, moments, history.
"""

import hashlib
import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from training.augmentation import jitter
from training.data import Digits
from training.device import Device
from training.distillation import distillation_loss
from training.network import MLP, normalise
from training.recipe import Distillation, Network
from training.schedule import one_cycle, plateau

REPORT_EVERY_S = 0.1
EVALUATION_BATCH = 2_500

Record = dict[str, float]
"""One epoch: epoch, loss, accuracy, validation_loss, validation_errors, validation_accuracy, learning_rate (at its
end), images_per_second, seconds."""


@dataclass(frozen=True)
class Job:
    """One network to train: everything that decides its weights but the digits and the teacher."""

    name: str
    network: Network
    seed: int
    distillation: Distillation | None = None

    @property
    def role(self) -> str:
        """`teacher` or `student`: both students start from the same weights and see the same batches."""
        return self.name.partition("-")[0]

    def draw_seed(self, epoch: int) -> int:
        """Return the seed of all random numbers of `epoch`; epoch 0 draws the initial weights."""
        digest = hashlib.sha256(f"{self.seed}/{self.role}/{epoch}".encode()).digest()
        return int.from_bytes(digest[:8]) >> 1  # torch takes 63 bits


class Observer(Protocol):
    """Who is told how a training goes."""

    def started(self, job: Job, *, epochs_done: int) -> None: ...
    def advanced(self, job: Job, *, progress: float, figures: Record) -> None: ...
    def finished_epoch(self, job: Job, record: Record) -> None: ...


class Training:
    """A network between two epochs of its training."""

    def __init__(
        self, job: Job, digits: Digits, validation: Digits, *, device: Device, teacher: MLP | None = None
    ) -> None:
        if (teacher is None) != (job.distillation is None):
            raise ValueError(f"{job.name}: a distillation needs a teacher, and only a distillation does")
        self.job, self.device = job, device
        self.digits, self.validation = device.move(digits), device.move(validation)
        torch.manual_seed(job.draw_seed(0))
        self.network = MLP(job.network.hidden, dropout=job.network.dropout).to(device.type)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), weight_decay=job.network.weight_decay, fused=True
        )
        self.history: list[Record] = []
        self.best = _copy(self.network)
        self.teacher = teacher.to(device.type).eval() if teacher else None
        # Plain digits are the same in every epoch, so the teacher is asked once.
        self.targets = (
            predict(self.teacher, self.digits.images)
            if self.teacher and not job.network.augmentation.enabled
            else None
        )

    @property
    def done(self) -> bool:
        """Whether every epoch has been trained."""
        return len(self.history) >= self.job.network.epochs

    @property
    def best_record(self) -> Record:
        """The epoch whose weights are kept: fewest validation errors, then the smallest validation loss."""
        return min(self.history, key=lambda record: (record["validation_errors"], record["validation_loss"]))

    def train_epoch(self, observer: Observer) -> None:
        """Train one epoch, validate, keep the weights if they are the best so far."""
        epoch = len(self.history) + 1
        torch.manual_seed(self.job.draw_seed(epoch))
        self.network.train()
        steps = math.ceil(len(self.digits) / self.job.network.batch_size)
        # Nearly equal batches: a small last one would give BatchNorm poor statistics.
        batches = torch.randperm(len(self.digits)).to(self.device.type).tensor_split(steps)
        loss_sum = torch.zeros((), device=self.device.type)
        hits = torch.zeros((), dtype=torch.int64, device=self.device.type)
        seen, told, start = 0, 0.0, time.perf_counter()
        for step, places in enumerate(batches, start=1):
            rate = self._set_rate(epoch - 1 + step / steps)
            loss, logits = self._step(places)
            loss_sum += loss.detach() * len(places)
            hits += (logits.argmax(1) == self.digits.labels[places]).sum()
            seen += len(places)
            now = time.perf_counter()
            if now - told > REPORT_EVERY_S or step == steps:
                told = now
                figures: Record = {
                    "loss": loss_sum.item() / seen,
                    "accuracy": hits.item() / seen,
                    "learning_rate": rate,
                    "images_per_second": seen / (time.perf_counter() - start),
                }
                observer.advanced(self.job, progress=epoch - 1 + step / steps, figures=figures)
        seconds = time.perf_counter() - start
        record = {"epoch": epoch, **figures, **validate(self.network, self.validation), "seconds": seconds}
        self._keep(record)
        observer.finished_epoch(self.job, record)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything the next epoch depends on: named tensors and JSON facts."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        return tensors, {"history": self.history}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take up where `state` was taken."""
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value.to(self.device.type)
        self.network.load_state_dict(parts["network"])
        self.best = parts["best"]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimizer"].items():
            index, _, moment = name.partition(".")
            moments.setdefault(int(index), {})[moment] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.history = list(facts["history"])

    def _step(self, places: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = self.digits.images[places], self.digits.labels[places]
        augmentation = self.job.network.augmentation
        inputs = normalise(jitter(images.float(), augmentation) if augmentation.enabled else images)
        with self.device.autocast():
            logits = self.network(inputs).float()
        if self.job.distillation and self.teacher:
            with torch.no_grad():
                targets = self.targets[places] if self.targets is not None else self.teacher(inputs)
            loss = distillation_loss(
                logits,
                targets,
                labels,
                temperature=self.job.distillation.temperature,
                alpha=self.job.distillation.alpha,
            )
        else:
            loss = functional.cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss, logits

    def _set_rate(self, epochs: float) -> float:
        settings = self.job.network
        if settings.schedule == "one-cycle":
            share = one_cycle(epochs / settings.epochs)
        else:
            share = plateau(self._losses(), settings.patience)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * share
        return settings.learning_rate * share

    def _keep(self, record: Record) -> None:
        self.history.append(record)
        if self.best_record is record:
            self.best = _copy(self.network)
        settings, losses = self.job.network, self._losses()
        if settings.schedule == "plateau" and (
            plateau(losses, settings.patience) < plateau(losses[:-1], settings.patience)
        ):
            self.network.load_state_dict(self.best)  # a smaller rate starts from the best place found

    def _losses(self) -> list[float]:
        return [record["validation_loss"] for record in self.history]


def predict(network: MLP, images: Tensor) -> Tensor:
    """Return the logits `float32 [N, 10]` for `uint8 [N, 28, 28]`, in evaluation mode and full precision."""
    network.eval()
    with torch.no_grad():
        batches = torch.split(images, EVALUATION_BATCH)
        return torch.cat([network(normalise(batch)) for batch in batches])


def validate(network: MLP, digits: Digits) -> Record:
    """Return validation_loss (nats), validation_errors and validation_accuracy."""
    logits = predict(network, digits.images)
    errors = int((logits.argmax(1) != digits.labels).sum())
    return {
        "validation_loss": functional.cross_entropy(logits, digits.labels).item(),
        "validation_errors": errors,
        "validation_accuracy": 1 - errors / len(digits),
    }


def _copy(network: MLP) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}
