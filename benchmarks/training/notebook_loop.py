"""The notebook's own training loop as a baseline: the cost of training as most tutorials do.

torchvision's MNIST converts every digit to a PIL image and back (`ToTensor`, `Normalize`) in a `DataLoader` of batches
of 64; Adam steps in float32 with its default implementation; the loss is read after every batch. The loss is corrected
(see training/recipe/notebook.toml), so that accuracies can be compared; the cost is unchanged.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Subset

from training.data.mnist_files import SHA256, read_verified
from training.data.torchvision_import import import_torchvision
from training.loop.losses import distillation_loss
from training.loop.trainer import Job
from training.model.network import MEAN, STD, Network, build

if TYPE_CHECKING:  # imported at run time by import_torchvision, which works around mismatched builds
    from torchvision.datasets import MNIST  # type: ignore[import-untyped]

LOSS = {"loss", "temperature", "alpha", "beta"}
"""The fields of a distillation that its loss depends on."""


def notebook_digits(folder: Path) -> "MNIST":
    """Return MNIST's 60,000 training digits as the notebook reads them; `folder` contains `MNIST/raw/…`."""
    transforms = import_torchvision("transforms")
    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    digits: MNIST = import_torchvision("datasets").MNIST(folder, transform=steps)
    return digits


def unpack_for_torchvision(folder: Path, target: Path) -> None:
    """Write the MNIST files of `folder` to where torchvision's MNIST looks for them below `target`."""
    raw = target / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in SHA256:
        (raw / name).write_bytes(read_verified(folder, name))


class NotebookLoop:
    """One network trained by the notebook's loop."""

    def __init__(self, job: Job, digits: "MNIST", *, teacher: Network | None = None) -> None:
        torch.manual_seed(job.seed)
        self.network = build(job.model, dropout=job.model.dropout)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=job.model.learning_rate)
        self.batch_size, self.distillation = job.model.batch_size, job.distillation
        self.digits = digits
        self.teacher = teacher.eval() if teacher else None

    def train(self, indices: Sequence[int]) -> float:
        """Train one epoch on the digits of these indices, in random order; return the seconds it took."""
        loader = DataLoader(Subset(self.digits, indices), batch_size=self.batch_size, shuffle=True)
        start = time.perf_counter()
        self.network.train()
        loss_settings = self.distillation.model_dump(include=LOSS) if self.distillation else {}
        running = 0.0
        for images, labels in loader:
            inputs = images.flatten(1)
            logits = self.network(inputs)
            if self.teacher:
                with torch.no_grad():
                    targets = self.teacher(inputs)
                loss = distillation_loss(logits, targets, labels, **loss_settings)
            else:
                loss = functional.cross_entropy(logits, labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            running += loss.item()
        return time.perf_counter() - start
