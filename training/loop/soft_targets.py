"""A teacher's logits for every view of the training digits, each computed once.

A convolutional ensemble costs many times what its student costs, and several students learn from it: one for each
width and each loss. So its logits are cached in a folder, one file per view (2 MB), until the folder is deleted.
"""

from pathlib import Path

import torch
from torch import Tensor

from training.data.mnist import Digits
from training.distributed import compute_in_shares, on_rank_0, rank
from training.loop.device import Device
from training.model.checkpoint import CheckpointError, load_tensors, save_tensors
from training.model.network import CLASSES, Network, normalise

BATCH = 250


class SoftTargets:
    """The logits of `network` in evaluation mode and the device's precision, cached in `folder` if given."""

    def __init__(self, network: Network, device: Device, folder: Path | None = None) -> None:
        self.network = network.to(device.type).eval()
        self.device, self.folder = device, folder
        self._last: tuple[int, Tensor] | None = None

    def logits(self, view: int, images: Tensor) -> Tensor:
        """Return `float32 [N, 10]` for `images`, uint8 `[N, 28, 28]`: the view with that number."""
        if self._last is None or self._last[0] != view:  # plain digits are the same in every epoch
            self._last = view, self._load_or_compute(view, images)
        return self._last[1]

    def errors(self, digits: Digits) -> int:
        """Return the number of `digits` that the teacher misclassifies."""
        return int((self._compute(digits.images).argmax(1) != digits.labels).sum())

    def _load_or_compute(self, view: int, images: Tensor) -> Tensor:
        cached = on_rank_0(lambda: self._load(view, len(images)))
        if cached is not None:
            return cached.to(self.device.type)
        logits = compute_in_shares(
            torch.empty(len(images), CLASSES, device=images.device),
            lambda part: self._compute(images[part]),
            step=BATCH,
        )
        if (file := self._file(view)) and rank() == 0:
            save_tensors(file, {"logits": logits}, {"view": view})
        return logits

    def _load(self, view: int, count: int) -> Tensor | None:
        if (file := self._file(view)) and file.exists():
            try:
                logits = load_tensors(file)[0]["logits"]
            except (CheckpointError, KeyError):
                return None  # computed again
            if logits.shape == (count, CLASSES) and logits.isfinite().all():
                return logits
        return None

    def _file(self, view: int) -> Path | None:
        return self.folder / f"view-{view:04}.safetensors" if self.folder else None

    def _compute(self, images: Tensor) -> Tensor:
        with torch.no_grad(), self.device.autocast():
            return torch.cat([self.network(normalise(batch)).float() for batch in torch.split(images, BATCH)])
