"""The networks: multi-layer perceptrons as in the paper, convolutional networks, and ensembles of either.

Teacher 784-1200-1200-10 and student 784-800-800-10 (Hinton, Vinyals, Dean 2015, section 3): each hidden layer
Linear, BatchNorm1d, ReLU, and optional dropout. Convolutional stages may precede them.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.recipe.schema import Architecture

SIDE = 28
PIXELS = SIDE * SIDE
CLASSES = 10
MEAN = 0.1307
STD = 0.3081
"""Mean and standard deviation of the MNIST training pixels scaled to 0..1; defined only here."""
BLACK = -MEAN / STD
"""The normalised value of a background pixel."""


def normalise(images: Tensor) -> Tensor:
    """Turn `uint8 [N, 28, 28]` ink values into `float32 [N, 784]` of zero mean and unit variance."""
    return images.flatten(1).float().sub_(255 * MEAN).div_(255 * STD)


class Convolution(nn.Module):
    """Convolution 3x3, BatchNorm2d, ReLU, and max-pooling 2x2 where it ends a stage."""

    def __init__(self, inputs: int, channels: int, *, norm: bool, first: bool, pool: bool) -> None:
        super().__init__()
        self.first, self.pool = first, pool
        self.conv = nn.Conv2d(inputs, channels, 3, padding=0 if first else 1)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        if self.first:  # padded with background, so that folding the normalisation into the weights is exact
            x = functional.pad(x, (1, 1, 1, 1), value=BLACK)
        x = torch.relu(self.norm(self.conv(x)))
        return functional.max_pool2d(x, 2) if self.pool else x


class HiddenLayer(nn.Module):
    """Linear, BatchNorm1d, ReLU, dropout."""

    def __init__(self, inputs: int, units: int, *, norm: bool, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, units)
        self.norm = nn.BatchNorm1d(units) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        activation: Tensor = self.dropout(torch.relu(self.norm(self.linear(x))))
        return activation


class Classifier(nn.Module):
    """`float32 [N, 784]` normalised pixels to `float32 [N, 10]` logits.

    Linear layers are initialised as DCGAN does: weights N(0, 0.02), BatchNorm1d weights N(1, 0.02), zero biases.
    """

    def __init__(
        self,
        hidden: Sequence[int],
        *,
        stages: Sequence[Sequence[int]] = (),
        norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList()
        inputs = 1
        for stage in stages:
            for place, channels in enumerate(stage, start=1):
                first, pool = not self.convolutions, place == len(stage)
                self.convolutions.append(Convolution(inputs, channels, norm=norm, first=first, pool=pool))
                inputs = channels
        self.dropout = nn.Dropout(dropout)
        widths = [(SIDE >> len(stages)) ** 2 * inputs, *hidden]
        self.hidden = nn.ModuleList(
            HiddenLayer(inputs, units, norm=norm, dropout=dropout) for inputs, units in pairwise(widths)
        )
        self.output = nn.Linear(widths[-1], CLASSES)
        if not self.output.weight.is_meta:  # of which torch would draw with its compiler, after a slow import
            self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm1d):
                nn.init.normal_(module.weight, 1.0, 0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.convolutions:
            x = x.reshape(-1, 1, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
            for convolution in self.convolutions:
                x = convolution(x)
            x = self.dropout(x.flatten(1))
        for layer in self.hidden:
            x = layer(x)
        logits: Tensor = self.output(x)
        return logits


class Ensemble(nn.Module):
    """The mean log-probabilities of several networks: `[N, 784]` to `[N, 10]`.

    In training mode it returns the members' logits concatenated, `[members · N, 10]`: each is trained independently on
    the same views, and they differ only by their initial weights.
    """

    def __init__(self, members: Sequence[Classifier]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        logits = [member(x) for member in self.members]
        if self.training:
            return torch.cat(logits)
        return torch.stack([functional.log_softmax(each, dim=1) for each in logits]).mean(dim=0)


Network = Classifier | Ensemble


def build(architecture: Architecture, *, dropout: float = 0.0) -> Network:
    """Return the network of `architecture` with initial weights from torch's global random numbers."""
    members = [
        Classifier(architecture.hidden, stages=architecture.stages, norm=architecture.norm, dropout=dropout)
        for _ in range(architecture.members)
    ]
    return members[0] if len(members) == 1 else Ensemble(members)
