"""`python -m serving`, installed as `distillery-serve`."""

import sys

import distillery
from serving.config import Serve


def run() -> None:
    """Run the command named on the command line."""
    sys.exit(distillery.main("distillery-serve", {"serve": Serve}, default="serve"))


if __name__ == "__main__":
    run()
