"""`distillery-bench`, also `python -m benchmarks`."""

import sys

from benchmarks.accuracy import AccuracyBench
from benchmarks.demo import Demo
from benchmarks.evidence import EvidenceBench
from benchmarks.footprint import FootprintBench
from benchmarks.http_bench import HttpBench
from benchmarks.loadgen.bench import ScenariosBench
from benchmarks.pareto import ParetoBench
from benchmarks.peers_bench import PeersBench
from benchmarks.perf_analyzer import PerfAnalyzerBench
from benchmarks.profile_bench import ProfileBench
from benchmarks.report.render import RenderBench
from benchmarks.reproduction import ReproductionBench
from benchmarks.session_bench import SessionBench
from benchmarks.speed import SpeedBench
from benchmarks.training import TrainingBench
from distillery import Command, main

COMMANDS: dict[str, type[Command]] = {
    "demo": Demo,
    "session": SessionBench,
    "http": HttpBench,
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
