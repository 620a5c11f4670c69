"""`distillery-bench`, also `python -m benchmarks`."""

import sys

from benchmarks.commands.accuracy import AccuracyBench
from benchmarks.commands.demo import Demo
from benchmarks.commands.evidence import EvidenceBench
from benchmarks.commands.footprint import FootprintBench
from benchmarks.commands.http import Http
from benchmarks.commands.pareto import ParetoBench
from benchmarks.commands.peers import PeersBench
from benchmarks.commands.perf_analyzer import PerfAnalyzerBench
from benchmarks.commands.profile import ProfileBench
from benchmarks.commands.render import RenderBench
from benchmarks.commands.reproduction import ReproductionBench
from benchmarks.commands.scenarios import ScenariosBench
from benchmarks.commands.session import Session
from benchmarks.commands.speed import SpeedBench
from benchmarks.commands.training import TrainingBench
from distillery import Command, main

COMMANDS: dict[str, type[Command]] = {
    "demo": Demo,
    "session": Session,
    "http": Http,
    "peers": PeersBench,
    "scenarios": ScenariosBench,
    "perf-analyzer": PerfAnalyzerBench,
    "profile": ProfileBench,
    "footprint": FootprintBench,
    "training": TrainingBench,
    "speed": SpeedBench,
    "accuracy": AccuracyBench,
    "reproduction": ReproductionBench,
    "pareto": ParetoBench,
    "evidence": EvidenceBench,
    "render": RenderBench,
}


def run() -> None:
    """Run one command and exit with its status."""
    sys.exit(main("distillery-bench", COMMANDS))


if __name__ == "__main__":
    run()
