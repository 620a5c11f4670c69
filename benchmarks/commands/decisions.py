"""`distillery-bench decisions`: what a release rule decides on real services, next to its simulation."""

import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scipy import stats

from benchmarks.commands.bench import Bench
from benchmarks.errors import BenchmarkError
from benchmarks.release.digits import Groups, predicted
from benchmarks.release.live import Live, Stream
from benchmarks.release.simulation import Setting, simulate_rule
from benchmarks.results.models import model_facts, select_models
from benchmarks.systems.candidates import accepting_all, write_versions
from benchmarks.systems.servers import running_service
from distillery import Metavar
from serving.model.release import CRITERIA, Rule
from serving.release.decisions import JUDGE_SECONDS
from training.data.mnist import find_mnist, load_test

KEY = "benchmark"
NAME = "model"
NEVER_SLOW_MS = 60_000
WORSE, EQUAL = 2.0, 1.0
"""Error rates of the candidates, in those of the stable version."""
RIGHT = {WORSE: "rollback", EQUAL: "promote"}
Share = Annotated[float, Field(gt=0, lt=0.5), Metavar("SHARE")]


class Case(NamedTuple):
    """Candidates of one kind."""

    rate: float
    """Error rate of the stable version."""
    ratio: float
    """The candidate's, in that of the stable version."""


class Decisions(Bench):
    """Let the rule of a release decide on real services, and compare with simulations.

    The stable version gets test digits of which it is wrong about a chosen share, the candidate twice as many, or as
    many. All of their true digits are sent as feedback. The rule, with the criterion wrong alone, rolls the candidate
    back or promotes it; then the next one starts.
    """

    limitations = (
        "the load generator shares the cores with the services",
        "digits are drawn independently, as the test assumes, and all are labelled, within a quarter of a second",
        "both versions accept every prediction, and no request is slow: the criterion wrong decides alone",
    )
    examples = (
        "distillery-bench decisions",
        "distillery-bench decisions --rates 0.05 --live 10 --equal 0 --services 2",
    )

    models_dir: Path = Field(Path("models"), description="model repository")
    models: list[str] = Field(
        ["student", "fast"],
        min_length=2,
        max_length=2,
        description="two models: the stable version and the candidate",
    )
    data_dir: Path | None = Field(None, description="folder with the MNIST files; downloaded by default")
    rates: Annotated[list[Share], Metavar("RATE,...")] = Field(
        [0.05, 0.01], min_length=1, description="error rates of the stable version"
    )
    share: float = Field(0.5, gt=0, lt=1, description="share of the requests that the candidate gets")
    alpha: float = Field(
        0.05, gt=0, lt=0.5, description="of the rule; each of its five criteria has a fifth of it"
    )
    tolerance: float = Field(2.0, gt=1, le=100, description="of the rule")
    live: NonNegativeInt = Field(20, description="real candidates with twice the errors, per rate")
    equal: NonNegativeInt = Field(8, description="real candidates with as many errors, per rate")
    services: PositiveInt = Field(4, description="services at a time, each with a candidate of its own")
    requests: PositiveFloat = Field(300.0, description="requests per second and service")
    limit: PositiveInt = Field(30_000, description="requests after which a candidate is given up")
    streams: PositiveInt = Field(1000, description="simulated candidates of each kind, per rate")
    seed: NonNegativeInt = Field(0, description="seed of all draws")

    def measure(self) -> dict[str, Any]:
        entries = select_models(self.models_dir, self.models)
        test = load_test(find_mnist(self.data_dir))
        images, labels = test.images.numpy(), test.labels.numpy()
        stable, candidate = (predicted(entries[name].content, images) for name in self.models)
        groups = Groups.of(labels, stable, candidate)
        rule = Rule(alpha=self.alpha, tolerance=self.tolerance, criteria=("wrong",), slow_ms=NEVER_SLOW_MS)
        cases = [Case(rate, ratio) for rate in sorted(self.rates) for ratio in (WORSE, EQUAL)]
        for case in cases:
            groups.weights(case.rate, case.rate * case.ratio)  # raises an error before anything is measured
        bodies = [json.dumps({"image": image.tolist()}, separators=(",", ":")).encode() for image in images]
        with ExitStack() as stack:
            free: SimpleQueue[Live] = SimpleQueue()
            for _ in range(self.services):
                root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distillery-decisions-")))
                write_versions(root, NAME, [accepting_all(entries[name]) for name in self.models])
                server = stack.enter_context(
                    running_service(root, "--api-servers", "1", "--api-key", KEY, "--feedback")
                )
                free.put(
                    Live(
                        url=server.url, key=KEY, model=NAME, bodies=bodies, labels=labels,
                        rate=self.requests, share=self.share, rule=rule,
                    )
                )  # fmt: skip
            found = self._run(cases, groups, free)
        return {
            "models": model_facts(entries),
            "versions": self.models,
            "groups": {name: len(group) for name, group in groups._asdict().items()},
            "share": self.share,
            "rule": rule.model_dump(mode="json"),
            "criteria": len(CRITERIA),
            "services": self.services,
            "requests_per_s": self.requests,
            "limit": self.limit,
            "streams": self.streams,
            "rows": [
                self._row(case, rule, streams, seed)
                for seed, (case, streams) in enumerate(found.items(), self.seed)
                if streams
            ],
        }

    def _run(
        self, cases: Sequence[Case], groups: Groups, free: "SimpleQueue[Live]"
    ) -> dict[Case, list[Stream]]:
        """Run all candidates, those that need the most requests first, each on the next free service."""
        columns = (TextColumn("candidates"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, transient=True) as progress, ThreadPoolExecutor(self.services) as pool:
            task = progress.add_task("", total=sum(map(self._count, cases)))

            def run(case: Case, seed: int) -> Stream:
                places = groups.draw(
                    case.rate, case.rate * case.ratio, self.limit, np.random.default_rng(seed)
                )
                live = free.get()
                try:
                    return live.run(places, seed)
                finally:
                    free.put(live)
                    progress.advance(task)

            futures: dict[Case, list[Future[Stream]]] = {}
            seed = self.seed
            for case in cases:
                futures[case] = [pool.submit(run, case, seed + n) for n in range(self._count(case))]
                seed += self._count(case)
            try:
                return {case: [future.result() for future in of_case] for case, of_case in futures.items()}
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _count(self, case: Case) -> int:
        return self.live if case.ratio == WORSE else self.equal

    def _row(self, case: Case, rule: Rule, streams: list[Stream], seed: int) -> dict[str, Any]:
        setting = Setting(
            rate=case.rate, share=self.share, block=max(1, round(self.requests * JUDGE_SECONDS))
        )
        simulated = simulate_rule(
            setting, case.ratio, rule, streams=self.streams, limit=self.limit, seed=seed
        )
        expected = np.array([requests for _, requests in simulated])
        live = np.array([stream.requests for stream in streams])
        limit = float(np.quantile(expected, 0.95, method="higher"))
        return {
            "rate": case.rate,
            "ratio": case.ratio,
            "right": RIGHT[case.ratio],
            "simulated": _summary([decision for decision, _ in simulated], expected),
            "live": {
                **_summary([stream.decision for stream in streams], live),
                "median_interval_90": _interval(live, 0.5),
                "p95_interval_90": _interval(live, 0.95),
                "above_p95": int((live > limit).sum()),
                "p_of_difference": round(float(stats.ks_2samp(live, expected).pvalue), 4),
                "seconds": round(median(stream.seconds for stream in streams), 1),
                "failed": sum(stream.failed for stream in streams),
                "error_rates": [_rate(streams, arm) for arm in ("stable", "candidate")],
            },
            "rounds": [stream.as_json() for stream in streams],
        }

    def summary(self, data: dict[str, Any]) -> dict[str, Any]:
        if failed := sum(row["live"]["failed"] for row in data["rows"]):
            raise BenchmarkError(f"{failed} requests failed")
        return super().summary(data)


def _summary(decisions: Sequence[str | None], requests: Any) -> dict[str, Any]:
    """Return the number of streams by decision, and the quantiles of their requests; None if undecided."""
    quantiles = {"median": 0.5, "p95": 0.95}
    values = {name: float(np.quantile(requests, q, method="higher")) for name, q in quantiles.items()}
    return {
        "streams": len(decisions),
        "rollback": decisions.count("rollback"),
        "promote": decisions.count("promote"),
        **{name: round(value) if np.isfinite(value) else None for name, value in values.items()},
    }


def _interval(requests: Any, quantile: float) -> list[int | None]:
    """Return the 90 % interval of a quantile by order statistics; None for an end that so few streams do not have."""
    ends = stats.quantile_test(requests, p=quantile).confidence_interval(0.9)
    return [round(float(end)) if np.isfinite(end) else None for end in ends]


def _rate(streams: Sequence[Stream], arm: str) -> float | None:
    """Return the error rate that the rule has counted for an arm over all streams."""
    errors, labels = (sum(getattr(stream, arm)[part] for stream in streams) for part in (0, 1))
    return round(errors / labels, 5) if labels else None
