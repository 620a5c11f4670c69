"""Export trained checkpoints to the ONNX model repository: `distillery-export` or `python -m export`."""

import sys

from distillery import CommandModules, main

COMMANDS = CommandModules("export.commands", ["export", "cascade", "sign", "key"])


def run() -> None:
    """Entry point of `distillery-export`."""
    sys.exit(main("distillery-export", COMMANDS, default="export"))


if __name__ == "__main__":
    run()
