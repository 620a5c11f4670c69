"""`distillery-bench speed`: how fast training is, how much of that is products, and what would make it faster.

distillery-bench speed                                            some three minutes
distillery-bench speed --networks tiny --compile tiny --seconds 30

Everything has its turn in every round, ratios are taken within a round, and the median of the rounds is told. A turn
is a few epochs of which the best counts: whatever else the machine does only makes them longer.
"""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.results.files import RESULTS, warn_if_busy, write_result
from benchmarks.training.speed_cases import NETWORKS, Case, Network, cases_of
from benchmarks.training.time_to_accuracy import say
from distillery import Command
from distillery.machine import usable_cores
from training.loop.device import DeviceName, choose_device

SPEEDUPS = {
    "bfloat16": ("bfloat16", "float32"),
    "compiled": ("compiled", "as it is"),
    "all cores": ("all cores", "as it is"),
}
"""What is compared with what; `as it is` has a precision, too."""


class SpeedBench(Command):
    """Measure training: images a second of each network, against the bare products, and in other ways.

    One thread, in the precision that training takes here; then the other precision, all cores, and torch.compile.
    Prints a table and, last, one line of JSON; keeps everything in a file under --results-dir.
    """

    networks: list[Network] = Field(list(NETWORKS), min_length=1, description="what is trained")
    compile: list[Network] = Field(
        ["student", "faster"], description="networks that are compiled as well, which takes some 20 s each"
    )
    batch_size: Annotated[int, Field(gt=1)] = Field(256, description="digits in a step")
    steps: PositiveInt = Field(8, description="steps of an epoch here")
    rounds: PositiveInt = Field(5, description="how often everything has its turn")
    seconds: PositiveFloat = Field(120, description="time for all turns")
    device: DeviceName = Field("cpu", description="where to train")
    results_dir: Path = Field(RESULTS, description="where the result is kept")

    def run(self) -> None:
        warn_if_busy()
        device = choose_device(self.device, "auto", threads=1)
        cases: list[Case] = []
        skipped: dict[str, str] = {}
        for network in self.networks:
            say(f"{network}: {NETWORKS[network].architecture}")
            more, missing = cases_of(
                network,
                device=device,
                batch_size=self.batch_size,
                steps=self.steps,
                compile_it=network in self.compile,
            )
            cases += more
            skipped |= missing
        say(f"{self.rounds} rounds of {len(cases)} turns")
        rates = in_turns(cases, rounds=self.rounds, seconds=self.seconds)
        precision = "bfloat16" if device.bfloat16 else "float32"
        data: dict[str, Any] = {
            "device": device.type,
            "precision": precision,
            "cores": usable_cores(),
            "batch_size": self.batch_size,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "skipped": skipped,
            "rows": [_row(network, cases, rates, precision) for network in self.networks],
        }
        path = write_result("speed", data, folder=self.results_dir)
        console = Console()
        console.print(speed_table(data))
        console.print(
            "Times as fast: bfloat16 as float32, compiled as eager, all cores as one.\n"
            "The floor is the time of the bare products of all layers, forward and backward.",
            soft_wrap=True,
        )
        for what, why in skipped.items():
            console.print(f"{what}: skipped, {why}", soft_wrap=True)
        rows = [{key: value for key, value in row.items() if key != "rounds"} for row in data["rows"]]
        print(json.dumps({"result": str(path), "rows": rows}))


def in_turns(cases: Sequence[Case], *, rounds: int, seconds: float) -> list[list[float]]:
    """Run every case in every round, backwards in every other one; return images/s, the rounds of each case."""
    slice_s = seconds / (rounds * len(cases))
    rates: list[list[float]] = [[] for _ in cases]
    for number, place in product(range(rounds), range(len(cases))):
        index = place if number % 2 == 0 else len(cases) - 1 - place
        case, best = cases[index], float("inf")
        torch.set_num_threads(case.threads)
        deadline = perf_counter() + slice_s
        while best == float("inf") or perf_counter() < deadline:
            best = min(best, case.run())
        rates[index].append(case.images / best)
    torch.set_num_threads(1)
    return rates


def _row(
    network: Network, cases: Sequence[Case], rates: Sequence[list[float]], precision: str
) -> dict[str, Any]:
    """Return what is told of one network: its rate, the share of the floor, and what each other way brings."""
    ways = {case.way: own for case, own in zip(cases, rates, strict=True) if case.network == network}
    rounds = {way: [round(rate, 1) for rate in own] for way, own in ways.items()}
    ways[precision] = ways["as it is"]

    def ratio(way: str, against: str) -> float:
        return round(median(ours / theirs for ours, theirs in zip(ways[way], ways[against], strict=True)), 3)

    return {
        "network": network,
        "shape": str(NETWORKS[network].architecture),
        "images_per_s": round(median(ways["as it is"])),
        "floor_share": ratio("as it is", "floor"),
        "speedups": {name: ratio(*pair) for name, pair in SPEEDUPS.items() if ways.keys() >= set(pair)},
        "rounds": rounds,
    }


def speed_table(data: dict[str, Any]) -> Table:
    """Lay out what was measured."""
    title = f"training, {data['precision']}, one thread, batches of {data['batch_size']}"
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    headings = {
        "bfloat16": "bfloat16",
        "compiled": "compiled",
        "all cores": f"{data['cores']} cores",
    }
    for heading in ("network", "images/s", "of the floor", *headings.values()):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for row in data["rows"]:
        speedups = (row["speedups"].get(name) for name in headings)
        table.add_row(
            row["network"],
            f"{row['images_per_s']:,}",
            f"{row['floor_share']:.0%}",
            *("" if speedup is None else f"{speedup:.2f}" for speedup in speedups),
        )
    return table
