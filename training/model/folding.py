"""Folding of BatchNorm and pixel normalisation into convolutions and fully connected layers.

At inference both are affine maps. Folding in float64 keeps the result within rounding of the trained network.
"""

import copy
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from training.model.network import MEAN, STD, Classifier, Convolution, HiddenLayer

Affine = nn.Conv2d | nn.Linear


def fold_norm(classifier: Classifier) -> Classifier:
    """Return `classifier` without BatchNorm, in float64 and evaluation mode.

    With s = γ/√(v+ε), s(Wx + b − m) + β = (sW)x + s(b − m) + β.
    """
    folded = copy.deepcopy(classifier).double().eval()
    for layer in cast("Iterable[Convolution | HiddenLayer]", (*folded.convolutions, *folded.hidden)):
        affine = layer.conv if isinstance(layer, Convolution) else layer.linear
        norm = layer.norm
        if isinstance(norm, nn.Identity):
            continue
        mean, variance = cast("Tensor", norm.running_mean), cast("Tensor", norm.running_var)
        bias = cast("Tensor", affine.bias)
        with torch.no_grad():
            scale = norm.weight / torch.sqrt(variance + norm.eps)
            affine.weight.mul_(scale.view(-1, *[1] * (affine.weight.dim() - 1)))
            bias.sub_(mean).mul_(scale).add_(norm.bias)
        layer.norm = nn.Identity()
    return folded


def affine_layers(classifier: Classifier) -> list[Affine]:
    """Return the layers with weights in order: convolutions, then fully connected layers."""
    convolutions = cast("Iterable[Convolution]", classifier.convolutions)
    hidden = cast("Iterable[HiddenLayer]", classifier.hidden)
    return [*(each.conv for each in convolutions), *(each.linear for each in hidden), classifier.output]


def fold_pixels(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the first layer for raw pixels p in 0..255 with background 0.

    W((p/255 − μ)/σ) + b = (W/(255σ))p + b − (μ/σ)W·1; a convolution must then be padded with zeros.
    """
    return weight / (255 * STD), bias - (MEAN / STD) * weight.flatten(1).sum(dim=1)
