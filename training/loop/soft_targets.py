"""A teacher's logits for every view of the training digits, each asked for once.

A convolutional ensemble costs many times what its student does, and several students learn from it: the distilled one
of each width, with each loss. So its answers stay in a folder, one file a view (2 MB), until somebody deletes it.
"""

from pathlib import Path

import torch
from torch import Tensor

from training.loop.device import Device
from training.model.checkpoint import CheckpointError, load_tensors, save_tensors
from training.model.network import CLASSES, Network, normalise

BATCH = 250


class SoftTargets:
    """What `network` answers, in evaluation mode and the device's precision; kept in `folder` if there is one."""

    def __init__(self, network: Network, device: Device, folder: Path | None = None) -> None:
        self.network = network.to(device.type).eval()
        self.device, self.folder = device, folder
        self._last: tuple[int, Tensor] | None = None

    def logits(self, view: int, images: Tensor) -> Tensor:
        """Return `float32 [N, 10]` for `images`, uint8 `[N, 28, 28]`: the view with that number."""
        if self._last is None or self._last[0] != view:  # plain digits are the same in every epoch
            self._last = view, self._kept(view, images)
        return self._last[1]

    def _kept(self, view: int, images: Tensor) -> Tensor:
        logits = self._read(view, len(images))
        if logits is None:
            logits = self._ask(images)
            self._keep(view, logits)
        return logits

    def _read(self, view: int, count: int) -> Tensor | None:
        if (file := self._file(view)) and file.exists():
            try:
                logits = load_tensors(file)[0]["logits"]
                if logits.shape == (count, CLASSES) and logits.isfinite().all():
                    return logits.to(self.device.type)
            except (CheckpointError, KeyError):
                pass  # it can be made again
        return None

    def _keep(self, view: int, logits: Tensor) -> None:
        if file := self._file(view):
            save_tensors(file, {"logits": logits}, {"view": view})

    def _file(self, view: int) -> Path | None:
        return self.folder / f"view-{view:04}.safetensors" if self.folder else None

    def _ask(self, images: Tensor) -> Tensor:
        with torch.no_grad(), self.device.autocast():
            return torch.cat([self.network(normalise(batch)).float() for batch in torch.split(images, BATCH)])
