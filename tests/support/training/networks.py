"""Small networks with the statistics of trained ones, and the metadata of their checkpoints."""

import torch

from training.model.network import Network, build
from training.recipe.schema import Architecture


def metadata(name: str, architecture: Architecture) -> dict[str, object]:
    """The metadata of a checkpoint of these tests."""
    return {
        "name": name,
        "architecture": architecture.model_dump(),
        "recipe": {"seed": 0},
        "dataset": {},
        "tools": {},
        "epoch": 1,
        "validation_errors": 0,
        "parameters": sum(weights.numel() for weights in build(architecture).parameters()),
        "seconds": 1.0,
    }


def used(architecture: Architecture) -> Network:
    """A network with random weights and random BatchNorm statistics, as if trained."""
    torch.manual_seed(0)
    network = build(architecture, dropout=0.5).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.3, 3)
            torch.nn.init.normal_(module.bias)
        elif isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_normal_(module.weight)
    return network.requires_grad_(requires_grad=False)
