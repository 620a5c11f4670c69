"""The networks: multi-layer perceptrons in the shape of the paper's teacher and students.

Teacher 784-1200-1200-10 and student 784-800-800-10 (Hinton, Vinyals, Dean 2015, section 3), each hidden
layer Linear, BatchNorm1d, ReLU, and dropout where the recipe asks for it.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

PIXELS = 28 * 28
CLASSES = 10
MEAN = 0.1307
STD = 0.3081
"""Mean and standard deviation of the MNIST training pixels scaled to 0..1; written here and nowhere else."""


def normalise(images: Tensor) -> Tensor:
    """Turn `uint8 [N, 28, 28]` ink values into `float32 [N, 784]` of zero mean and unit variance."""
    return images.flatten(1).float().sub_(255 * MEAN).div_(255 * STD)


class HiddenLayer(nn.Module):
    """Linear, BatchNorm1d, ReLU, dropout."""

    def __init__(self, inputs: int, units: int, *, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, units)
        self.norm = nn.BatchNorm1d(units)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        activation: Tensor = self.dropout(torch.relu(self.norm(self.linear(x))))
        return activation


class MLP(nn.Module):
    """`float32 [N, 784]` normalised pixels to `float32 [N, 10]` logits.

    Initialised as DCGAN does: weights N(0, 0.02), BatchNorm weights N(1, 0.02), zero biases.
    """

    def __init__(self, hidden: Sequence[int], *, dropout: float = 0.0) -> None:
        super().__init__()
        widths = [PIXELS, *hidden]
        self.hidden = nn.ModuleList(
            HiddenLayer(inputs, units, dropout=dropout) for inputs, units in pairwise(widths)
        )
        self.output = nn.Linear(widths[-1], CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm1d):
                nn.init.normal_(module.weight, 1.0, 0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = layer(x)
        logits: Tensor = self.output(x)
        return logits
