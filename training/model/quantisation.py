"""Train a network as its int8 graph computes, so that its weights suit the rounding ("fake quantisation").

A trained network is taken, BatchNorm folded away, and its forward pass becomes the arithmetic of the file that
`export` writes of it: the raw image as it is, weights rounded to integers with a scale for each unit, activations
rounded to 0..255 of a ceiling that is found once, by calibration, and then stays. Rounding passes gradients on as if
it were not there (Bengio et al. 2013, arXiv:1308.3432; Jacob et al. 2018, arXiv:1712.05877, section 3). What comes
out is an ordinary checkpoint without BatchNorm; `export` quantises it with the ceilings that are in its card.
"""

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.model.folding import Affine, affine_layers, fold_norm, fold_pixels
from training.model.network import (
    MEAN,
    SIDE,
    STD,
    Classifier,
    Convolution,
    Ensemble,
    HiddenLayer,
    Network,
    normalise,
)
from training.recipe.schema import Architecture

CALIBRATION_DIGITS = 1_000
PERCENTILE = 99.99
"""Of a layer's activations: those above saturate."""
WEIGHT_BITS = 7
"""With 8, two products of 255 · 127 exceed the 16-bit sums of x86 processors without VNNI; with 7 all answer alike."""
LEVELS = 255
"""Of an activation, above 0."""


class QuantisedClassifier(Classifier):
    """A classifier without BatchNorm that answers as its int8 graph.

    `ceilings`: for each layer but the last the activation that becomes 255. What is multiplied are small integers,
    exact in bfloat16, too.
    """

    def __init__(self, architecture: Architecture, ceilings: list[float]) -> None:
        super().__init__(architecture.hidden, stages=architecture.stages, norm=False)
        self.ceilings = ceilings

    @property
    def card(self) -> dict[str, Any]:
        """What an export must know to quantise the weights as they were trained."""
        return {"quantisation": {"ceilings": self.ceilings, "weight_bits": WEIGHT_BITS}}

    def forward(self, x: Tensor) -> Tensor:
        values, scale = torch.round((x * STD + MEAN) * 255), 1.0
        if self.convolutions:
            values = values.reshape(-1, 1, SIDE, SIDE)
        pools = [convolution.pool for convolution in cast("Iterable[Convolution]", self.convolutions)]
        *layers, last = affine_layers(self)
        for index, (layer, ceiling) in enumerate(zip(layers, self.ceilings, strict=True)):
            sums = _sums(layer, values, scale, first=index == 0)
            scale = ceiling / LEVELS
            values = _round(sums / scale).clamp(0, LEVELS)
            if index < len(pools) and pools[index]:
                values = functional.max_pool2d(values, 2)
        return _sums(last, values, scale, first=not layers)


def quantised(network: Network, architecture: Architecture, images: Tensor) -> QuantisedClassifier:
    """Return `network`, trained and of this architecture, as int8 computes it; calibrated on uint8 `[N, 28, 28]`."""
    if isinstance(network, Ensemble):
        raise TypeError("an ensemble is not quantised")
    found = QuantisedClassifier(architecture, calibrate(network, images[:CALIBRATION_DIGITS]))
    found.load_state_dict(fold_norm(network).float().state_dict())
    return found


def calibrate(network: Classifier, images: Tensor) -> list[float]:
    """Return what `PERCENTILE` of each layer's activations do not exceed, for all layers but the last."""
    ceilings: list[float] = []

    def keep(_module: nn.Module, _inputs: object, sums: Tensor) -> None:
        ceilings.append(max(float(np.percentile(torch.relu(sums).numpy(), PERCENTILE)), 1e-8))

    layers = cast("list[Convolution | HiddenLayer]", [*network.convolutions, *network.hidden])
    hooks = [layer.norm.register_forward_hook(keep) for layer in layers]
    with torch.no_grad():
        network.eval()(normalise(images))
    for hook in hooks:
        hook.remove()
    return ceilings


def _sums(layer: Affine, values: Tensor, scale: float, *, first: bool) -> Tensor:
    """Return what `layer` answers to integers worth `scale` each; the first layer reads raw pixels."""
    weight, bias = layer.weight, cast("Tensor", layer.bias)
    if first:
        weight, bias = fold_pixels(weight, bias)
    limit = 2 ** (WEIGHT_BITS - 1) - 1
    steps = weight.detach().flatten(1).abs().amax(dim=1).clamp(min=1e-8) / limit
    weight = _round(weight / steps.view(-1, *[1] * (weight.dim() - 1)))
    unit, bias = steps * scale, _round(bias / (steps * scale))
    if isinstance(layer, nn.Conv2d):
        unit, bias = unit.view(-1, 1, 1), bias.view(-1, 1, 1)
        sums: Tensor = functional.conv2d(values, weight, padding=1)
    else:
        sums = functional.linear(values.flatten(1), weight)
    answers: Tensor = (sums + bias) * unit
    return answers


def _round(x: Tensor) -> Tensor:
    """Round; the gradient is that of no rounding at all (straight-through estimator)."""
    return x + (torch.round(x) - x).detach()
