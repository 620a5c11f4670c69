"""`python -m serving`, installed as `distillery-serve`."""

import sys

import distillery
from serving.config import Serve

COMMANDS: dict[str, type[distillery.Command]] = {"serve": Serve}


def run() -> None:
    """Run the command named on the command line."""
    sys.exit(distillery.main("distillery-serve", COMMANDS, default="serve"))


if __name__ == "__main__":
    run()
