"""Train the models of a recipe, count their errors, report: `distillery-train` or `python -m training`."""

import sys

from distillery import CommandModules, main

COMMANDS = CommandModules("training.commands", ["train", "evaluate", "report", "reproduce", "sweep"])


def run() -> None:
    """Entry point of `distillery-train`."""
    sys.exit(main("distillery-train", COMMANDS, default="train"))


if __name__ == "__main__":
    run()
