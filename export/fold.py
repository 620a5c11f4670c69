"""Fold a trained network into the plain affine layers it amounts to at inference; these become the graph.

At inference, BatchNorm and pixel normalisation are affine maps. Folding them into convolutions and fully connected
layers in float64 keeps the result within rounding of the trained network.
"""

from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from training.model.network import MEAN, STD, Classifier, Convolution, Ensemble, HiddenLayer, Network

Float = NDArray[np.float32]
Double = NDArray[np.float64]


class Layer(NamedTuple):
    """Weight `[out, in]`, in a convolution `[out, in, 3, 3]`; bias `[out]`; whether 2x2 max-pooling follows."""

    weight: Float
    bias: Float
    pool: bool = False


def fold(network: Network) -> list[list[Layer]]:
    """Return the layers of each member of `network`, which take raw pixels in 0..255 with background 0.

    A ReLU follows every layer but the last; convolutions are padded with zeros.
    """
    members = network.members if isinstance(network, Ensemble) else [network]
    return [_fold_classifier(cast("Classifier", member)) for member in members]


def _fold_classifier(classifier: Classifier) -> list[Layer]:
    stages, hidden = (
        cast("list[Convolution]", classifier.convolutions),
        cast("list[HiddenLayer]", classifier.hidden),
    )
    folded = [
        *(_fold_norm(stage.conv, stage.norm) for stage in stages),
        *(_fold_norm(layer.linear, layer.norm) for layer in hidden),
        _fold_norm(classifier.output, nn.Identity()),
    ]
    folded[0] = _fold_pixels(*folded[0])
    pools = [stage.pool for stage in stages] + [False] * (len(folded) - len(stages))
    return [
        Layer(weight.astype(np.float32), bias.astype(np.float32), pool)
        for (weight, bias), pool in zip(folded, pools, strict=True)
    ]


def _fold_norm(affine: nn.Conv2d | nn.Linear, norm: nn.Module) -> tuple[Double, Double]:
    """Return weight and bias of a layer together with the BatchNorm that follows it, if any.

    With s = γ/√(v+ε), s(Wx + b − m) + β = (sW)x + s(b − m) + β.
    """
    weight, bias = _double(affine.weight), _double(affine.bias)
    if isinstance(norm, nn.Identity):
        return weight, bias
    batch_norm = cast("nn.BatchNorm1d | nn.BatchNorm2d", norm)
    scale = _double(batch_norm.weight) / np.sqrt(_double(batch_norm.running_var) + batch_norm.eps)
    bias = (bias - _double(batch_norm.running_mean)) * scale + _double(batch_norm.bias)
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias


def _fold_pixels(weight: Double, bias: Double) -> tuple[Double, Double]:
    """Return weight and bias of the first layer for raw pixels p.

    W((p/255 − μ)/σ) + b = (W/(255σ))p + b − (μ/σ)W·1. The network pads with normalised black, which becomes 0.
    """
    return weight / (255 * STD), bias - (MEAN / STD) * weight.reshape(len(weight), -1).sum(axis=1)


def _double(tensor: Tensor | None) -> Double:
    return cast("Tensor", tensor).detach().cpu().double().numpy()
