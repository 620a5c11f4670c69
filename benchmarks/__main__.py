"""`distillery-bench`, also `python -m benchmarks`."""

import sys

from benchmarks.commands.accuracy import Accuracy
from benchmarks.commands.demo import Demo
from benchmarks.commands.footprint import Footprint
from benchmarks.commands.http import Http
from benchmarks.commands.pareto import Pareto
from benchmarks.commands.peers import Peers
from benchmarks.commands.perf_analyzer import PerfAnalyzer
from benchmarks.commands.pictures import Pictures
from benchmarks.commands.profile import Profile
from benchmarks.commands.record import Record
from benchmarks.commands.render import Render
from benchmarks.commands.scenarios import Scenarios
from benchmarks.commands.session import Session
from benchmarks.commands.speed import Speed
from benchmarks.commands.training import Training
from distillery import Command, main

COMMANDS: dict[str, type[Command]] = {
    "demo": Demo,
    "session": Session,
    "http": Http,
    "peers": Peers,
    "scenarios": Scenarios,
    "perf-analyzer": PerfAnalyzer,
    "profile": Profile,
    "footprint": Footprint,
    "pictures": Pictures,
    "training": Training,
    "speed": Speed,
    "accuracy": Accuracy,
    "pareto": Pareto,
    "record": Record,
    "render": Render,
}


def run() -> None:
    """Run one command and exit with its status."""
    sys.exit(main("distillery-bench", COMMANDS))


if __name__ == "__main__":
    run()
