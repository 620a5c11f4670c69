"""`distillery-bench sequential`: requests until the release rules decide, and how often they are wrong, simulated."""

from itertools import product
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from rich.progress import track

from benchmarks.commands.bench import Bench
from benchmarks.release.simulation import Setting, simulate
from distillery import Metavar

Share = Annotated[float, Field(gt=0, lt=1), Metavar("SHARE")]


class Sequential(Bench):
    """Simulate the sequential test that stops or promotes a candidate.

    Requests until a candidate with twice the errors is stopped, and until an equal or better one is promoted; the share
    of equal candidates that are stopped; compared with a test of a fixed sample, with the same z-test after every block
    of requests, and with the e-variables of Turner, Ly and Grünwald.
    """

    limitations = (
        "simulated: errors are independent of each other, and the shares of requests and errors do not drift",
        "requests of both arms together, until the end of the block with the decision",
    )
    examples = (
        "distillery-bench sequential",
        "distillery-bench sequential --rates 0.001 --shares 0.05 --streams 200",
    )

    rates: Annotated[list[Share], Metavar("RATE,...")] = Field(
        [0.005, 0.01, 0.02, 0.05], min_length=1, description="error rates of the stable model"
    )
    shares: Annotated[list[Share], Metavar("SHARE,...")] = Field(
        [0.1, 0.5], min_length=1, description="shares of the requests that the candidate gets"
    )
    alpha: Annotated[float, Metavar("SHARE")] = Field(
        0.05, gt=0, lt=1, description="probability of a wrong decision of either side of the test"
    )
    tolerance: Annotated[float, Metavar("FACTOR")] = Field(
        2.0, gt=1, le=100, description="a candidate with this many times the errors must not be promoted"
    )
    block: PositiveInt = Field(100, description="requests after which the test is read")
    streams: PositiveInt = Field(1000, description="simulated releases per row")
    horizon: PositiveFloat = Field(10.0, description="length of a release, in fixed samples")
    seed: NonNegativeInt = Field(0, description="seed of the simulation")

    def measure(self) -> dict[str, Any]:
        cases = list(product(self.rates, self.shares))
        rows = [
            simulate(
                Setting(rate=rate, share=share, alpha=self.alpha, tolerance=self.tolerance, block=self.block),
                streams=self.streams,
                horizon=self.horizon,
                seed=self.seed + number,
            )
            for number, (rate, share) in enumerate(track(cases, "sequential", transient=True))
        ]
        return {
            "alpha": self.alpha,
            "tolerance": self.tolerance,
            "block": self.block,
            "streams": self.streams,
            "horizon": self.horizon,
            "rows": rows,
        }
