"""The training loop: digits in memory, one network, epochs between which training can be stopped and resumed.

All random numbers of an epoch are seeded by the recipe's seed, the model's role and the epoch, and the learning rate
is a function of the epochs so far. So the state between two epochs is weights, optimizer moments and history.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distillery.request_log.distinct import UNLABELLED
from training.data.mnist import Digits, without
from training.data.views import Views, draw_seed
from training.distributed import data_parallel, gather_logits, on_rank_0, rank, share, size
from training.loop.adamw import AdamW
from training.loop.device import Device
from training.loop.logged_images import LoggedImages
from training.loop.losses import LossSettings, distillation_loss, mixed_loss
from training.loop.schedule import one_cycle, plateau
from training.loop.soft_targets import SoftTargets
from training.model.network import CLASSES, HiddenLayer, Network, build, normalise
from training.recipe.schema import ALONE, Distillation, Model

REPORT_INTERVAL_S = 0.1
EVALUATION_BATCH = 2_500

Record = dict[str, float]
"""One epoch: epoch, loss (nats), accuracy, validation_loss, validation_errors, validation_accuracy, learning_rate (of
its last step), images_per_second, seconds; with a request log also log_errors, those on its held-out images."""


@dataclass(frozen=True)
class Job:
    """One model to train: everything its weights depend on but the digits and the teacher."""

    name: str
    model: Model
    seed: int
    view_seed: int | None = None
    """The seed of the views if not `seed`: students of several seeds share views and soft targets."""

    @property
    def distillation(self) -> Distillation | None:
        return self.model.distillation

    @property
    def role(self) -> str:
        """The name without `-alone`: a student and its control start from the same weights and use the same batches."""
        return self.name.removesuffix(ALONE)

    @property
    def view_seed_or_seed(self) -> int:
        """The seed of the views."""
        return self.seed if self.view_seed is None else self.view_seed

    def draw_seed(self, epoch: int) -> int:
        """Return the seed of all random numbers of `epoch` except the views; epoch 0: the initial weights."""
        return draw_seed(self.seed, self.role, epoch)


class Observer:
    """Receives the progress of trainings. This one ignores it; override the methods to show it."""

    def started(self, job: Job, *, epochs_done: int) -> None:
        """Training begins, or resumes after `epochs_done` epochs."""

    def advanced(self, job: Job, *, progress: float, figures: Record) -> None:
        """`progress` epochs are trained (a fraction); `figures` are those of the current epoch so far."""

    def finished_epoch(self, job: Job, record: Record) -> None:
        """An epoch is trained and validated."""

    def reused(self, job: Job, metadata: dict[str, Any]) -> None:
        """The model was trained before: `metadata` of its checkpoint."""

    def finished(self, job: Job, metadata: dict[str, Any]) -> None:
        """The model is trained and saved: `metadata` of its checkpoint."""


class Training:
    """The training of one network, between two epochs. Every rank of a process group holds one (SPMD).

    `selected` holds the weights of the epoch that the checkpoint will hold: see `selected_record`.
    """

    def __init__(
        self,
        job: Job,
        digits: Digits,
        validation: Digits,
        *,
        device: Device,
        teacher: SoftTargets | None = None,
        logged: LoggedImages | None = None,
        logged_validation: Digits | None = None,
    ) -> None:
        if (teacher is None) != (job.distillation is None):
            raise ValueError(f"{job.name}: a teacher is required with a distillation, and only then")
        self.job, self.device, self.teacher = job, device, teacher
        self.digits = device.move(without(digits, job.model.leave_out))
        self.validation = device.move(validation)
        self.logged = logged
        self.logged_validation = device.move(logged_validation) if logged_validation else None
        self.views = Views(self.digits.images, job.model, job.view_seed_or_seed)
        torch.manual_seed(job.draw_seed(0))
        self.network = build(job.model, dropout=job.model.dropout).to(device.type)
        self._data_parallel = data_parallel(self.network)
        self.optimizer = AdamW(self.network.parameters(), weight_decay=job.model.weight_decay, fused=True)
        self.history: list[Record] = []
        self.selected = _copy(self.network)

    @property
    def done(self) -> bool:
        """True once every epoch has been trained."""
        return len(self.history) >= self.job.model.epochs

    @property
    def selected_record(self) -> Record:
        """The epoch with the fewest validation errors, of equals the lowest loss; the last with `keep = "last"`.

        Errors on held-out images of a request log count as much as those on MNIST's.
        """
        if self.job.model.keep == "last":
            return self.history[-1]

        def errors(record: Record) -> tuple[float, float]:
            return record["validation_errors"] + record.get("log_errors", 0), record["validation_loss"]

        return min(self.history, key=errors)

    def train_epoch(self, observer: Observer) -> None:
        """Train one epoch, validate, and select the weights if they are the best so far."""
        epoch, start = len(self.history) + 1, time.perf_counter()
        view = self.views.number(epoch)
        images = self.views.show(view)
        labels = self.digits.labels
        targets = self.teacher.logits(view, images) if self.teacher else None
        alphas: Tensor | None = None
        if self.logged and targets is not None and self.job.distillation:
            sample = self.logged.sample(epoch)
            alphas = torch.full([len(labels)], self.job.distillation.alpha, device=labels.device)
            alphas = torch.cat([alphas, sample.alphas])
            images, labels = torch.cat([images, sample.images]), torch.cat([labels, sample.labels])
            targets = torch.cat([targets, sample.targets])
        self.network.train()
        batches = self.batches(epoch)
        steps = len(batches)
        loss_sum = torch.zeros((), device=self.device.type)
        hits = torch.zeros((), dtype=torch.int64, device=self.device.type)
        known = torch.zeros((), dtype=torch.int64, device=self.device.type)
        seen, reported, members = 0, 0.0, self.job.model.members
        for step, places in enumerate(batches, start=1):
            rate = self.set_rate(epoch - 1 + step / steps)
            of_batch = labels[places]
            loss, logits = self._step(
                images[places],
                of_batch,
                targets[places] if targets is not None else None,
                alphas[places] if alphas is not None else None,
            )
            loss_sum += loss * len(places)
            hits += (logits.argmax(2) == of_batch).sum()
            known += (of_batch != UNLABELLED).sum()
            seen += len(places)
            now = time.perf_counter()
            if now - reported > REPORT_INTERVAL_S or step == steps:
                reported = now
                figures: Record = {
                    "loss": loss_sum.item() / seen,
                    "accuracy": hits.item() / (known.item() * members),
                    "learning_rate": rate,
                    "images_per_second": seen / (time.perf_counter() - start),
                }
                observer.advanced(self.job, progress=epoch - 1 + step / steps, figures=figures)
        seconds = time.perf_counter() - start
        record = {"epoch": epoch, **figures, **self.validate(), "seconds": seconds}
        self.finish_epoch(record)
        observer.finished_epoch(self.job, record)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything the next epoch depends on: tensors by name, and values for JSON."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"selected.{name}": value for name, value in self.selected.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        return tensors, {"history": self.history}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "selected": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value.to(self.device.type)
        self.network.load_state_dict(parts["network"])
        self.selected = parts["selected"]
        moments: dict[int, dict[str, Tensor]] = {}
        weights = list(self.network.parameters())
        for name, value in parts["optimizer"].items():
            index, _, moment = name.partition(".")
            weight = weights[int(index)]
            # The fused step requires weights and moments of one memory format; convolutions are channels last.
            laid_out = torch.empty_like(weight).copy_(value) if value.shape == weight.shape else value
            moments.setdefault(int(index), {})[moment] = laid_out
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.history = list(facts["history"])

    def batches(self, epoch: int) -> tuple[Tensor, ...]:
        """Return the indices of each batch's digits, MNIST's before a log's; seeds all random numbers of `epoch`."""
        torch.manual_seed(self.job.draw_seed(epoch))
        images = len(self.digits) + (self.logged.size if self.logged else 0)
        steps = math.ceil(images / self.job.model.batch_size)
        # Nearly equal batches: a small last one would give BatchNorm poor statistics.
        batches = torch.randperm(images).to(self.device.type).tensor_split(steps)
        if size() > 1:  # dropout differs between ranks
            torch.manual_seed(draw_seed(self.job.draw_seed(epoch), rank()))
        return batches

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of a batch, uint8 `[N, 28, 28]`, of every member: `float32 [members, N, 10]`."""
        part = share(len(images))
        with self.device.autocast():
            own: Tensor = self._data_parallel(normalise(images[part])).float()
        return gather_logits(own.view(self.job.model.members, -1, CLASSES), part, len(images))

    def validate(self) -> Record:
        """Return validation_loss (nats), validation_errors and validation_accuracy of the network now.

        With the held-out images of a request log, `log_errors` are those on them.
        """
        return on_rank_0(self._validate)

    def _validate(self) -> Record:
        record = validate(self.network, self.validation)
        if self.logged_validation:
            record["log_errors"] = validate(self.network, self.logged_validation)["validation_errors"]
        return record

    def _step(
        self, images: Tensor, labels: Tensor, targets: Tensor | None, alphas: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Train one step on uint8 `[N, 28, 28]`; return the members' mean loss and logits `[members, N, 10]`."""
        logits = self.logits(images)
        losses = torch.stack([self.loss(of_member, labels, targets, alphas) for of_member in logits])
        self.optimizer.zero_grad()
        losses.sum().backward()  # type: ignore[no-untyped-call] # not the mean: members train independently
        self.optimizer.step()
        if self.job.model.max_norm:
            limit_norms(self.network, self.job.model.max_norm)
        return losses.detach().mean(), logits

    def loss(
        self, logits: Tensor, labels: Tensor, targets: Tensor | None, alphas: Tensor | None = None
    ) -> Tensor:
        """Return the loss of one network on a batch, a scalar.

        `targets` are the teacher's logits, if any, and `alphas` their weights, that of the recipe if None.
        """
        settings = self.job.distillation
        if settings is None or targets is None:
            return functional.cross_entropy(logits, labels)
        of_recipe: LossSettings = {
            "loss": settings.loss,
            "temperature": settings.temperature,
            "beta": settings.beta,
        }
        if alphas is None:
            return distillation_loss(logits, targets, labels, alpha=settings.alpha, **of_recipe)
        return mixed_loss(logits, targets, labels, alphas, **of_recipe)

    def set_rate(self, epochs: float) -> float:
        """Set the optimizer's learning rate for progress `epochs` (a fraction), and return it."""
        settings = self.job.model
        if settings.schedule == "one-cycle":
            share = one_cycle(epochs / settings.epochs)
        else:
            share = plateau(self._losses(), settings.patience)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * share
        return settings.learning_rate * share

    def finish_epoch(self, record: Record) -> None:
        """Add an epoch to the history, select its weights if they are the best, and restore these on a plateau."""
        self.history.append(record)
        if self.selected_record is record:
            self.selected = _copy(self.network)
        settings, losses = self.job.model, self._losses()
        if settings.schedule == "plateau" and (
            plateau(losses, settings.patience) < plateau(losses[:-1], settings.patience)
        ):
            self.network.load_state_dict(self.selected)  # the lower rate starts from the best weights

    def _losses(self) -> list[float]:
        return [record["validation_loss"] for record in self.history]


def predict(network: Network, images: Tensor) -> Tensor:
    """Return the logits `float32 [N, 10]` for `uint8 [N, 28, 28]`, in evaluation mode and full precision."""
    network.eval()
    with torch.no_grad():
        batches = torch.split(images, EVALUATION_BATCH)
        return torch.cat([network(normalise(batch)) for batch in batches])


def limit_norms(network: Network, longest: float) -> None:
    """Limit the norm of every hidden unit's incoming weights to `longest` (Hinton et al. 2012, arXiv:1207.0580)."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, HiddenLayer):
                module.linear.weight.copy_(torch.renorm(module.linear.weight, 2, 0, longest))


def validate(network: Network, digits: Digits) -> Record:
    """Return validation_loss (nats), validation_errors and validation_accuracy."""
    logits = predict(network, digits.images)
    errors = int((logits.argmax(1) != digits.labels).sum())
    return {
        "validation_loss": functional.cross_entropy(logits, digits.labels).item(),
        "validation_errors": errors,
        "validation_accuracy": 1 - errors / len(digits),
    }


def _copy(network: Network) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}
