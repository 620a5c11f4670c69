"""Several processes at one training, with torch's own DistributedDataParallel: gloo on CPUs, NCCL on GPUs.

    torchrun --nproc-per-node 2 -m training --recipe paper

The first process leads: it alone reads and writes files, shows progress, validates, and tells the others what to do.
The batches are those of one process, and each process has its part of every batch. BatchNorm's statistics and the loss
are of the whole batch, so the weights are those of one process but for the order in which numbers are added, and for
dropout, which each process draws for itself. Views and soft targets, which often cost more, are divided as well.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from datetime import timedelta
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from distillery import DistilleryError
from training.data.augmentation import CHUNK, jitter
from training.data.mnist import Digits
from training.data.views import KEPT, Views, draw_seed, random_of_view
from training.loop.collective import gather, part_of, rank, share_norms, size, together
from training.loop.device import Device
from training.loop.soft_targets import BATCH, SoftTargets
from training.loop.trainer import Job, Observer, Record, Training
from training.model.network import CLASSES, normalise
from training.recipe.schema import Augmentation

PATIENCE = timedelta(days=7)
"""The others wait while the first waits for another process's training."""


@contextmanager
def lead(device: Device, digits: Digits, validation: Digits) -> Iterator[None]:
    """Let the others, if there are any, share every `new_training` within; they know only what they are told."""
    if size() == 1:
        yield
        return
    with _group(device):
        _tell(digits, validation)
        try:
            yield
        except DistilleryError:  # raised between two epochs, when the others wait to be told what is next
            _tell("stop")
            raise
        _tell("stop")


def follow(device: Device) -> None:
    """Do what the first process tells, until it has nothing more to do."""
    with _group(device):
        digits, validation = _hear()
        training: SharedTraining
        while True:
            match _hear():
                case "new", Job() as job, teacher:
                    targets = SoftTargets(teacher, device) if teacher else None
                    training = SharedTraining(job, digits, validation, device=device, teacher=targets)
                case "restore", tensors, facts:
                    training.restore(tensors, facts)
                case ("train_epoch",):
                    training.train_epoch(Observer())
                case ("stop",):
                    return


def new_training(
    job: Job, digits: Digits, validation: Digits, *, device: Device, teacher: SoftTargets | None
) -> Training:
    """Return a training that the others share, if there are any."""
    kind = SharedTraining if distributed.is_initialized() else Training
    return kind(job, digits, validation, device=device, teacher=teacher)


class SharedTraining(Training):
    """A training of which every process does its part."""

    def __init__(
        self,
        job: Job,
        digits: Digits,
        validation: Digits,
        *,
        device: Device,
        teacher: SoftTargets | None = None,
    ) -> None:
        _tell("new", job, deepcopy(teacher.network).cpu() if teacher else None)
        shared = SharedTargets(teacher.network, device, teacher.folder) if teacher else None
        super().__init__(job, digits, validation, device=device, teacher=shared)
        self.views = SharedViews(self.digits.images, job.model, self.views.seed)
        share_norms(self.network)
        self._parallel = DistributedDataParallel(self.network, forward_sync_buffers=False)

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        _tell("restore", tensors, facts)
        super().restore(tensors, facts)

    def train_epoch(self, observer: Observer) -> None:
        _tell("train_epoch")
        super().train_epoch(observer)

    def batches(self, epoch: int) -> tuple[Tensor, ...]:
        batches = super().batches(epoch)
        torch.manual_seed(draw_seed(self.job.draw_seed(epoch), rank()))  # for dropout
        return batches

    def logits(self, images: Tensor) -> Tensor:
        mine = part_of(len(images))
        with self.device.autocast():
            own = self._parallel(normalise(images[mine])).float()
        by_member = own.view(self.job.model.members, -1, CLASSES)
        return gather(by_member, mine, len(images)).flatten(0, 1)

    def validate(self) -> Record:
        if rank():
            return dict(_hear()[0])
        record = super().validate()
        _tell(record)
        return record


class SharedViews(Views):
    """Views of which every process draws a part."""

    @staticmethod
    @lru_cache(maxsize=KEPT)
    def draw(images: Tensor, augmentation: Augmentation, seed: int, number: int) -> Tensor:
        random = random_of_view(seed, number)

        def mine(part: slice) -> Tensor:
            return jitter(images[part], augmentation, random=random, after=part.start)

        return together(torch.empty_like(images), CHUNK, mine)


class SharedTargets(SoftTargets):
    """Soft targets of which every process asks for a part; the first keeps them."""

    def _kept(self, view: int, images: Tensor) -> Tensor:
        logits = None if rank() else self._read(view, len(images))
        there = torch.tensor(int(logits is not None), device=images.device)
        distributed.broadcast(there, 0)
        if logits is None:
            logits = torch.empty(len(images), CLASSES, device=images.device)
        if there:
            distributed.broadcast(logits, 0)
            return logits
        together(logits, BATCH, lambda part: self._ask(images[part]))
        if rank() == 0:
            self._keep(view, logits)
        return logits


@contextmanager
def _group(device: Device) -> Iterator[None]:
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _tell(*order: Any) -> None:
    """Say something to all others; they `_hear` it, and say nothing themselves."""
    if rank() == 0:
        distributed.broadcast_object_list([order], 0, device=torch.device("cpu"))


def _hear() -> Any:
    heard: list[Any] = [None]
    distributed.broadcast_object_list(heard, 0, device=torch.device("cpu"))
    return heard[0]
