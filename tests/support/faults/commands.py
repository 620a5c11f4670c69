"""What the commands of `tests/faults` need, for their fork server: imported, with the sample digits for MNIST.

The folder of the digits is DISTILLERY_DATA_DIR.
"""

import os
from importlib import import_module
from pathlib import Path

import optuna
import torch
import tqdm

from distillery.files import sha256
from export.splits import Splits
from training.data import mnist

for name in (
    "benchmarks.commands.http",
    "export.commands.export",
    "onnx.reference",
    "optuna.importance",
    "scipy.optimize",
    "scipy.stats",
    "tests.support.faults.publish",
    "training.commands.sweep",
    "training.commands.train",
):
    import_module(name)

torch.set_num_threads(1)
tqdm.tqdm.monitor_interval = 0  # no thread: a fork has one thread only
optuna.logging.set_verbosity(optuna.logging.WARNING)
optuna.create_study(storage="sqlite://").ask({"x": optuna.distributions.FloatDistribution(0, 1)})

DIGITS = Path(os.environ["DISTILLERY_DATA_DIR"])
mnist.SHA256.update({name: sha256((DIGITS / name).read_bytes()) for name in mnist.SHA256})
mnist.VALIDATION_DIGITS = 100
read = Splits.read


def read_few(data_dir: Path | None) -> Splits:
    """Read the splits, with few digits drawn for calibration."""
    splits = read(data_dir)
    return Splits(splits.training, splits.validation, splits.test, drawn=30)


Splits.read = read_few  # type: ignore[assignment, method-assign]
