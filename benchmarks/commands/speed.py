"""`distillery-bench speed`: training throughput of each network, by precision, compiler and cores."""

import sys
from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from benchmarks.commands.bench import Bench
from benchmarks.load.interleave import interleave
from benchmarks.results.ratio import Ratio
from benchmarks.training.speed_cases import NETWORKS, Case, Network, cases_of
from distillery.machine import usable_cores
from training.loop.device import DeviceName, choose_device

SPEEDUPS = {
    "bfloat16": ("bfloat16", "float32"),
    "compiled": ("compiled", "default"),
    "all cores": ("all cores", "default"),
}
"""The variant of a case, and the variant that it is compared with."""


class Speed(Bench):
    """Measure training speed per network and variant, in images per second.

    One thread, in the default precision of the device; then the other precision, all cores, and torch.compile.
    """

    examples = ("distillery-bench speed --networks student,faster --seconds 30",)

    networks: list[Network] = Field(list(NETWORKS), min_length=1, description="networks to train")
    compile: list[Network] = Field(
        ["student", "faster"], description="networks to compile as well; about 20 s each"
    )
    batch_size: Annotated[int, Field(gt=1)] = Field(256, description="images per step")
    steps: PositiveInt = Field(8, description="steps per epoch")
    rounds: PositiveInt = Field(5, description="rounds; each measures every case once")
    seconds: PositiveFloat = Field(120, description="seconds in total")
    device: DeviceName = Field("cpu", description="device to train on")

    def measure(self) -> dict[str, Any]:
        device = choose_device(self.device, "auto", threads=1)
        cases: list[Case] = []
        skipped: dict[str, str] = {}
        for network in self.networks:
            print(f"{network}: {NETWORKS[network].architecture}", file=sys.stderr)
            more, missing = cases_of(
                network,
                device=device,
                batch_size=self.batch_size,
                steps=self.steps,
                compile_it=network in self.compile,
            )
            cases += more
            skipped |= missing
        print(f"{self.rounds} interleaved rounds of {len(cases)} cases", file=sys.stderr)
        rates = measure_rates(cases, rounds=self.rounds, seconds=self.seconds)
        precision = "bfloat16" if device.bfloat16 else "float32"
        return {
            "device": device.type,
            "precision": precision,
            "cores": usable_cores(),
            "batch_size": self.batch_size,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "skipped": skipped,
            "rows": [_row(network, cases, rates, precision) for network in self.networks],
        }


def measure_rates(cases: Sequence[Case], *, rounds: int, seconds: float) -> list[list[float]]:
    """Measure every case in every round; return images/s of the best epoch of each round, by case."""

    def rate(case: Case) -> float:
        torch.set_num_threads(case.threads)
        deadline = perf_counter() + seconds / (rounds * len(cases))
        best = case.run()
        while perf_counter() < deadline:
            best = min(best, case.run())
        return case.images / best

    rates = interleave(cases, rounds, rate)
    torch.set_num_threads(1)
    return rates


def _row(
    network: Network, cases: Sequence[Case], rates: Sequence[list[float]], precision: str
) -> dict[str, Any]:
    """Return the rate of one network, its share of the floor's, and the speedup of each variant."""
    own = {case.variant: rate for case, rate in zip(cases, rates, strict=True) if case.network == network}
    rounds = {variant: [round(rate, 1) for rate in values] for variant, values in own.items()}
    own[precision] = own["default"]
    return {
        "network": network,
        "shape": str(NETWORKS[network].architecture),
        "images_per_s": round(median(own["default"])),
        "floor_share": round(Ratio.within_rounds(own["default"], own["floor"]).median, 3),
        "speedups": {
            name: Ratio.within_rounds(own[variant], own[reference]).as_json()
            for name, (variant, reference) in SPEEDUPS.items()
            if variant in own and reference in own
        },
        "rounds": rounds,
    }
