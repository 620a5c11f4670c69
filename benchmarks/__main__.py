"""`distillery-bench`, also `python -m benchmarks`."""

import sys

from distillery import CommandModules, main

COMMANDS = CommandModules(
    "benchmarks.commands",
    [
        "demo",
        "session",
        "http",
        "peers",
        "scenarios",
        "perf-analyzer",
        "profile",
        "footprint",
        "score",
        "overload",
        "switches",
        "advise",
        "sequential",
        "decisions",
        "overhead",
        "replay",
        "loop",
        "cluster",
        "autoscaling",
        "top",
        "soak",
        "pictures",
        "acceptance",
        "cascade",
        "training",
        "speed",
        "accuracy",
        "pareto",
        "record",
        "render",
    ],
)


def run() -> None:
    """Run one command and exit with its status."""
    sys.exit(main("distillery-bench", COMMANDS))


if __name__ == "__main__":
    run()
