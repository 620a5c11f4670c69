"""A teacher's logits for every view of the training digits, each asked for once.

A convolutional ensemble costs many times what its student does, and several students learn from it: the distilled one
of each width, with each loss. So its answers stay in a folder, one file a view (2 MB), until somebody deletes it.
"""

from pathlib import Path

import torch
from torch import Tensor

from training.checkpoint import CheckpointError, load_tensors, save_tensors
from training.device import Device
from training.network import CLASSES, Network, normalise

BATCH = 1_000


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
        file = self.folder / f"view-{view:04}.safetensors" if self.folder else None
        if file and file.exists():
            try:
                logits = load_tensors(file)[0]["logits"]
                if logits.shape == (len(images), CLASSES) and logits.isfinite().all():
                    return logits.to(self.device.type)
            except (CheckpointError, KeyError):
                pass  # it can be made again
        logits = self._ask(images)
        if file:
            save_tensors(file, {"logits": logits}, {"view": view})
        return logits

    def _ask(self, images: Tensor) -> Tensor:
        with torch.no_grad(), self.device.autocast():
            return torch.cat([self.network(normalise(batch)).float() for batch in torch.split(images, BATCH)])
