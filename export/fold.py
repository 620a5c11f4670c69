"""From a trained network to the plain affine layers it amounts to when it answers.

At inference BatchNorm is an affine map and so is the normalisation of the pixels, so both disappear into the
Linear layer next to them. Folding in float64 keeps the result within rounding of the network as trained.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from training.network import MEAN, PIXELS, STD, Classifier, HiddenLayer, Network


class FoldedMLP(nn.Module):
    """`uint8 [N, 28, 28]` ink to `float32 [N, 10]` logits and probabilities: what becomes the graph."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for weight, bias in layers:
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.load_state_dict({"weight": weight.float(), "bias": bias.float()})
            self.layers.append(linear)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = image.float().reshape(-1, PIXELS)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        logits = self.layers[-1](x)
        return logits, torch.softmax(logits, dim=1)


def fold(network: Network) -> FoldedMLP:
    """Fold normalisation and BatchNorm of `network` into its Linear layers, exactly (in float64).

    BatchNorm: with s = γ/√(v+ε), s(Wx + b − m) + β = (sW)x + s(b − m) + β.
    Normalisation of the pixel p in 0..255: W((p/255 − μ)/σ) + b = (W/(255σ))p + b − (μ/σ)W·1.
    """
    layers = []
    for layer in cast("Iterable[HiddenLayer]", network.hidden):
        linear, norm = layer.linear, layer.norm
        mean, variance = cast("Tensor", norm.running_mean), cast("Tensor", norm.running_var)
        scale = norm.weight.double() / torch.sqrt(variance.double() + norm.eps)
        weight = scale[:, None] * linear.weight.double()
        bias = scale * (linear.bias.double() - mean.double()) + norm.bias.double()
        layers.append((weight, bias))
    layers.append((network.output.weight.double(), network.output.bias.double()))
    weight, bias = layers[0]
    layers[0] = (weight / (255 * STD), bias - (MEAN / STD) * weight.sum(dim=1))
    return FoldedMLP([(weight.detach(), bias.detach()) for weight, bias in layers]).eval()
