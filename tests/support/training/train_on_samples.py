"""`distillery-train` as a process of its own, on the sample digits.

python tests/support/training/train_on_samples.py FOLDER sweep --trials 2
torchrun --nproc-per-node 2 tests/support/training/train_on_samples.py FOLDER --recipe quick

FOLDER: where `samples.write_as_mnist` has put the digits.
"""

import signal
import sys
from pathlib import Path

import distillery
from distillery.files import sha256
from training.commands.sweep import Sweep
from training.commands.train import Train
from training.data import mnist as data


def main() -> int:
    """Run the command that the arguments after the folder name."""
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored in what a shell starts in the background
    folder, *arguments = sys.argv[1:]
    data.SHA256.update({name: sha256((Path(folder) / name).read_bytes()) for name in data.SHA256})
    data.VALIDATION_DIGITS = 100
    commands: dict[str, type[distillery.Command]] = {"train": Train, "sweep": Sweep}
    found = [*arguments, f"--data-dir={folder}"]
    return distillery.main("distillery-train", commands, default="train", arguments=found)


if __name__ == "__main__":
    sys.exit(main())
