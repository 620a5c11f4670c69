"""The small networks of the tests: trained on the sample digits, and exported."""

from pathlib import Path

import torch

from export.pipeline import Source, export_checkpoint
from export.splits import Splits
from tests.support.training.networks import metadata
from tests.support.training.samples import sample_training
from training.loop.adamw import AdamW
from training.model.checkpoint import save_checkpoint
from training.model.network import build, normalise
from training.recipe.schema import Architecture

NETWORKS = {"teacher": [96, 96], "student": [48, 48], "student-alone": [48, 48], "fast": [24, 24]}
EPOCHS = 25


def train_networks(folder: Path) -> None:
    """Train the networks and write their checkpoints to `folder`."""
    digits, _ = sample_training()
    inputs = normalise(digits.images)
    for seed, (name, hidden) in enumerate(NETWORKS.items()):
        torch.manual_seed(seed)
        architecture = Architecture(hidden=hidden)
        network = build(architecture).train()
        optimizer = AdamW(network.parameters(), lr=3e-3, fused=True)
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(digits)).split(50):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(network(inputs[batch]), digits.labels[batch]).backward()
                optimizer.step()
        save_checkpoint(checkpoint(folder, name), network.state_dict(), metadata(name, architecture))


def checkpoint(folder: Path, name: str) -> Path:
    """The file of a network in the folder of `train_networks`."""
    return folder / f"{name}.safetensors"


def export_networks(trained: dict[str, Path], splits: Splits, models_dir: Path) -> None:
    """Export the networks but `fast` to a model repository; the student also as int8."""
    for name, path in trained.items():
        if name != "fast":
            export_checkpoint(Source(name, path), splits, models_dir=models_dir, int8=name == "student")
