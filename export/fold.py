"""Fold a trained network into the plain affine layers it amounts to at inference; these become the graph.

At inference, BatchNorm and pixel normalisation are affine maps. Folding them into convolutions and fully connected
layers in float64 keeps the result within rounding of the trained network.
"""

import copy
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.model.network import (
    MEAN,
    PIXELS,
    SIDE,
    STD,
    Classifier,
    Convolution,
    Ensemble,
    HiddenLayer,
    Network,
)


class FoldedClassifier(nn.Module):
    """`uint8 [N, 28, 28]` pixels to `float32 [N, 10]` logits and probabilities."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        plain = _fold_norm(network)
        affine = _affine_layers(plain)
        weight, bias = _fold_pixels(affine[0].weight, cast("Tensor", affine[0].bias))
        affine[0].load_state_dict({"weight": weight, "bias": bias})
        if isinstance(affine[0], nn.Conv2d):
            affine[0].padding = (1, 1)  # the network pads with normalised black, which is now 0
        stages = cast("Iterable[Convolution]", plain.convolutions)
        self.pools = [stage.pool for stage in stages]
        self.convolutions = nn.ModuleList(affine[: len(self.pools)])
        self.layers = nn.ModuleList(affine[len(self.pools) :])
        self.float()

    def pixels(self, image: Tensor) -> Tensor:
        """Return `image` as `float32` in the shape of the first layer's input."""
        return image.float().reshape(-1, *((1, SIDE, SIDE) if self.pools else (PIXELS,)))

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of what `pixels` returned."""
        for convolution, pool in zip(self.convolutions, self.pools, strict=True):
            x = torch.relu(convolution(x))
            x = functional.max_pool2d(x, 2) if pool else x
        if self.pools:
            x = x.reshape(-1, cast("nn.Linear", self.layers[0]).in_features)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        logits: Tensor = self.layers[-1](x)
        return logits

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(self.pixels(image))
        return logits, torch.softmax(logits, dim=1)


class FoldedEnsemble(nn.Module):
    """All members in one graph; as in `Ensemble`, `logits` is the mean of their log-probabilities."""

    def __init__(self, members: Iterable[FoldedClassifier]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        members = cast("list[FoldedClassifier]", list(self.members))
        pixels = members[0].pixels(image)
        each = torch.stack([member.logits(pixels) for member in members])
        logits = torch.log_softmax(each, dim=2).mean(dim=0)
        return logits, torch.softmax(logits, dim=1)


Folded = FoldedClassifier | FoldedEnsemble


def fold(network: Network) -> Folded:
    """Fold pixel normalisation and BatchNorm of `network` into its affine layers, in float64."""
    if isinstance(network, Ensemble):
        members = cast("Iterable[Classifier]", network.members)
        return FoldedEnsemble([FoldedClassifier(member) for member in members]).eval()
    return FoldedClassifier(network).eval()


def _fold_norm(classifier: Classifier) -> Classifier:
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


def _affine_layers(classifier: Classifier) -> list[nn.Conv2d | nn.Linear]:
    """Return the layers with weights in order: convolutions, then fully connected layers."""
    convolutions = cast("Iterable[Convolution]", classifier.convolutions)
    hidden = cast("Iterable[HiddenLayer]", classifier.hidden)
    return [*(each.conv for each in convolutions), *(each.linear for each in hidden), classifier.output]


def _fold_pixels(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the first layer for raw pixels p in 0..255 with background 0.

    W((p/255 − μ)/σ) + b = (W/(255σ))p + b − (μ/σ)W·1; a convolution must then be padded with zeros.
    """
    return weight / (255 * STD), bias - (MEAN / STD) * weight.flatten(1).sum(dim=1)
