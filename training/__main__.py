"""Train the models of a recipe, count their errors, report: `distillery-train` or `python -m training`."""

import sys

import distillery
from training.commands.evaluate import Evaluate
from training.commands.report import Report
from training.commands.reproduce import Reproduce
from training.commands.sweep import Sweep
from training.commands.train import Train

COMMANDS: dict[str, type[distillery.Command]] = {
    "train": Train,
    "evaluate": Evaluate,
    "report": Report,
    "reproduce": Reproduce,
    "sweep": Sweep,
}


def run() -> None:
    """Entry point of `distillery-train`."""
    sys.exit(distillery.main("distillery-train", COMMANDS, default="train"))


if __name__ == "__main__":
    run()
