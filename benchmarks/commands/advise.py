"""`distillery-bench advise`: the cheapest settings of the service that meet a latency target on this machine."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Self

import tomli_w
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.advise.candidates import Candidate, SessionCosts, Shape, choose_models, powers_of_two, shapes
from benchmarks.advise.measure import Known, Run, requests_to_verify, run_candidate
from benchmarks.advise.profile import LogProfile, PoissonProfile, Profile
from benchmarks.advise.search import FINALISTS, Race, Search
from benchmarks.advise.verify import ROUNDS, Verified, verify
from benchmarks.commands.bench import Bench, RepositorySettings
from benchmarks.errors import BenchmarkError
from benchmarks.load.workloads import BodyKind, check_answers, service_workload
from benchmarks.results.files import describe_run
from benchmarks.results.models import model_facts
from benchmarks.systems.servers import Executor, ServerProcess, running_service
from distillery import Metavar, unknown
from distillery.files import require_writable, sha256, write_atomically
from distillery.machine import usable_cores
from distillery.request_log.read import read_log
from serving.model.repository import ModelEntry, load_repository

SHARE_OF_SEARCH = 0.5
"""Of the time; the rest is for the verification, and for starting services."""
SHARE_OF_VERIFICATION = 0.4
SETTINGS_FILE, REPORT_FILE, RUNS_FILE = "serve.toml", "report.md", "runs.json"
NEWEST = 100_000
"""Images of a log that are read, the newest ones."""
LEAST_SECONDS = 2.0
"""Of the run that describes the closest candidate."""
SERVED = 0.95
"""Below this part of the rate, the service does not keep up."""
BUSY = 0.75
"""Above this part of the cores, of service and generator together, the cores limit."""


class Advise(Bench, RepositorySettings):
    """Find the cheapest settings of the service that meet a latency target.

    The target is the 99th percentile of the latency at a rate of requests, which arrive at random (an open loop). All
    models, numbers of processes, batch sizes and threads are measured on this machine, in shorter and then longer runs
    of ever fewer; the cheapest one takes the least CPU time per request. It is verified in interleaved rounds with the
    second one and with simpler settings. The folder --out gets serve.toml, for `distillery-serve --config`, and
    report.md.
    """

    limitations = (
        "the load generator, in Python, runs on the same machine and takes cores from the service",
        "CPU time and latency of this machine, as busy as it was; loopback interface",
        "the confidence interval of late requests takes them as independent of each other",
    )
    examples = (
        "distillery-bench advise --p99 5 --rate 500",
        "distillery-bench advise --p99 10 --rate 200 --max-errors 120 --minutes 10",
        "distillery-bench advise --p99 10 --log log",
    )

    p99: Annotated[float, Metavar("MS")] = Field(
        gt=0,
        le=60_000,
        description="99th percentile of the latency that must not be exceeded, in milliseconds",
    )
    rate: Annotated[float | None, Metavar("R")] = Field(
        None, gt=0, le=1_000_000, description="requests per second"
    )
    log: Annotated[Path | None, Metavar("DIR")] = Field(
        None,
        description="folder of a request log, whose busiest part is the load: its images and its arrivals, as fast as "
        "recorded or at --rate",
    )
    body: BodyKind = Field(
        "json", description="request body without --log: one image, or as many as its name says"
    )
    max_errors: NonNegativeInt | None = Field(
        None, description="only models with at most this number of test errors"
    )
    min_accuracy: Annotated[float | None, Metavar("SHARE")] = Field(
        None, ge=0, le=1, description="only models with at least this test accuracy"
    )
    executor: list[Executor] = Field(
        ["inprocess"],
        min_length=1,
        description="executors to consider; workers cost more CPU time per request",
    )
    api_servers: list[PositiveInt] = Field(
        default_factory=lambda: powers_of_two(usable_cores()), description="API processes to consider"
    )
    threads: list[PositiveInt] = Field(
        default_factory=lambda: powers_of_two(usable_cores()), description="threads per run to consider"
    )
    max_batch: list[PositiveInt] = Field([1, 8, 64], description="maximum images per batch to consider")
    connections: int = Field(32, ge=1, le=4096, description="connections of the load generator")
    minutes: float = Field(5.0, gt=0, le=1440, description="time for all, about")
    price: float = Field(0.04, ge=0, le=1e6, description="price of a core-hour, in any currency")
    out: Path = Field(Path("advice"), description="folder of the settings file and the report")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.rate is None and self.log is None:
            raise ValueError(
                "--rate is missing: name the requests per second that the service must serve, or a --log"
            )
        for name in ("api_servers", "threads", "max_batch"):
            if not getattr(self, name):
                raise ValueError(f"--{name.replace('_', '-')} is empty: name at least one number")
        return self

    def run(self) -> None:
        require_writable(self.out)
        super().run()

    def entries(self) -> dict[str, ModelEntry]:
        """Return the models by name, cascades too. Raises `BenchmarkError` for an unknown name."""
        found = load_repository(self.models_dir)
        for name in self.models:
            if name not in found:
                raise BenchmarkError(f"{self.models_dir}: {unknown('model', name, found)}")
        return {name: found[name] for name in self.models or found}

    def measure(self) -> dict[str, Any]:
        entries = self.entries()
        seconds = 60 * self.minutes * SHARE_OF_VERIFICATION / ROUNDS / FINALISTS
        profile = self._profile(seconds)
        self._check_time(profile, seconds)
        models, left_out = choose_models(entries, max_errors=self.max_errors, min_accuracy=self.min_accuracy)
        cores = usable_cores()
        several = shapes(self.executor, self.threads, self.api_servers, self.max_batch, cores)
        candidates = [Candidate(shape, model) for shape in several for model in models]
        runs = _Runs(self.out / RUNS_FILE, self._key(entries), profile)
        with _progress(60 * self.minutes) as show:
            search = Search(
                profile=profile,
                costs=SessionCosts(load_repository(self.models_dir)),
                start=_Services(self.models_dir, entries).open,
                run=lambda service, one, length, number: runs.run(
                    service, one, length, f"run {number}", number
                ),
                clock=time.monotonic,
                progress=lambda text, race: show(_with_best(text, race)),
            )
            race = search.race(candidates, time.monotonic() + 60 * self.minutes * SHARE_OF_SEARCH)
            verified = self._verify(race, search, runs, seconds, show)
            preference = self._preference(entries, candidates)
            winner = next((each.choose(preference) for each in verified if each.passed), None)
            closest = None if winner else self._closest(race, search, runs, seconds)
        return {
            "models": model_facts(entries),
            "target": {"p99_ms": self.p99, "profile": str(profile), "rate": round(profile.rate, 3)},
            "constraint": self._constraint(),
            "price": self.price,
            "left_out": left_out,
            "advice": self._advice(winner, verified) if winner else None,
            "failure": None if winner else self._failure(closest, profile.rate, cores),
            "rounds": ROUNDS,
            "verified": [_verified_row(one, each) for each in verified for one in each.rounds],
            "rows": [_row(one, race) for one in candidates],
        }

    def publish(self, data: dict[str, Any]) -> str:
        """Write the result, the settings file and the report; raise `BenchmarkError` where nothing meets the target."""
        text = super().publish(data)
        write_atomically(self.out / REPORT_FILE, f"# Settings for the service\n\n{text}\n".encode())
        if not data["advice"]:
            raise BenchmarkError(f"{data['failure']}; {self.out / REPORT_FILE} has all measurements")
        write_atomically(self.out / SETTINGS_FILE, self._settings(data).encode())
        print(f"wrote {self.out / SETTINGS_FILE}: distillery-serve --config {self.out / SETTINGS_FILE}")
        return text

    def summary(self, data: dict[str, Any]) -> dict[str, Any]:
        return {name: data[name] for name in ("advice", "failure")}

    def _profile(self, seconds: float) -> Profile:
        connections, limit_s = self.connections, self.p99 / 1e3
        if self.log:
            log = read_log(self.log, newest=NEWEST)
            return LogProfile(log, self.rate, seconds=seconds, connections=connections, limit_s=limit_s)
        assert self.rate is not None  # noqa: S101 - `_complete`
        return PoissonProfile(self.rate, self.body, connections=connections, limit_s=limit_s)

    def _check_time(self, profile: Profile, seconds: float) -> None:
        expected, needed = profile.rate * ROUNDS * seconds, requests_to_verify()
        if expected < needed:
            raise BenchmarkError(
                f"--minutes {self.minutes:g}: {profile.rate:g} requests/s are {expected:.0f} requests in the "
                f"verification, and {needed} are needed to show a 99th percentile; "
                f"use --minutes {self.minutes * needed / expected * 1.05:.1f}"
            )

    def _verify(
        self, race: Race, search: Search, runs: "_Runs", seconds: float, show: Callable[[str], None]
    ) -> list[Verified]:
        """Verify the finalists, and the next candidates if none of them meets the target."""
        verified: list[Verified] = []
        first = race.finalists()
        others = [one for one in race.cheapest() if one not in first][:FINALISTS]
        for several in (first, others):
            if several and not any(each.passed for each in verified):
                measure = _verification(several, runs, seconds, show)
                verified.append(verify(several, start=search.start, run=measure))
        return verified

    @staticmethod
    def _preference(
        entries: dict[str, ModelEntry], candidates: Sequence[Candidate]
    ) -> Callable[[Candidate], tuple[int, int]]:
        """Return the order of candidates of the same cost: fewer test errors, then simpler settings."""
        return lambda one: (entries[one.model].manifest.test_errors, candidates.index(one))

    def _constraint(self) -> str | None:
        if self.max_errors is not None:
            return f"at most {self.max_errors} test errors"
        return None if self.min_accuracy is None else f"a test accuracy of at least {self.min_accuracy:g}"

    def _advice(self, winner: Candidate, verified: Sequence[Verified]) -> dict[str, Any]:
        (rounds,) = (each for each in verified if winner in each.rounds)
        other = next((one for one in [*rounds.passed, *rounds.rounds] if one != winner), None)
        cost = median(rounds.costs(winner))
        return {
            "model": winner.model,
            "settings": winner.shape.settings(),
            "cpu_us": round(cost, 2),
            "cost_per_million": round(cost / 3600 * self.price, 6),
            "p99_ms": _rounded(rounds.known(winner).latency_ms(0.99)),
            "late_bound": round(rounds.known(winner).late_bound, 6),
            "runner_up": other and str(other),
            "runner_up_passed": other in rounds.passed,
            "saving": rounds.saving(winner, other).as_json() if other else None,
        }

    def _closest(
        self, race: Race, search: Search, runs: "_Runs", seconds: float
    ) -> tuple[Candidate, Known] | None:
        """Return the candidate with the lowest 99th percentile and a run of it that does not end early."""
        closest = race.closest()
        if closest is None:
            return None
        with search.start(closest.shape) as service:
            run = runs.run(service, closest, max(seconds, LEAST_SECONDS), "closest", 0, whole=True)
        return closest, Known([run])

    def _failure(self, found: tuple[Candidate, Known] | None, rate: float, cores: int) -> str:
        """Return what limits, and the fix."""
        if found is None:
            return (
                f"nothing was measured: each model alone needs more than the processes and threads allowed at "
                f"{rate:g} requests/s; lower --rate, or use more cores than the {cores} of this machine"
            )
        closest, known = found
        p99 = known.latency_ms(0.99)
        message = (
            f"nothing meets p99 ≤ {self.p99:g} ms at {rate:g} requests/s; the closest is {closest} with "
            f"{f'p99 {p99:.3g} ms' if p99 else 'more than 1 % without a response'} and "
            f"{known.late / max(1, known.requests):.1%} late requests"
        )
        busy = known.cores + known.generator_cores
        if busy > BUSY * cores or known.served_per_s < SERVED * rate:
            lower = min(rate, known.served_per_s) * min(1.0, BUSY * cores / busy)
            return (
                f"{message}. The cores limit: the service took {known.cores:.2f} and the load generator "
                f"{known.generator_cores:.2f} of {cores}, and {known.served_per_s:,.0f} requests/s were served; "
                f"use --rate {_two_digits(lower)} or less, or more cores"
            )
        larger = f"--p99 {_two_digits(1.2 * p99)}" if p99 else "a larger --p99"
        return (
            f"{message}. The latency limits, not the {cores} cores, of which {busy:.2f} were busy; use {larger}, "
            "a faster model, or a machine on which nothing else runs"
        )

    def _settings(self, data: dict[str, Any]) -> str:
        advice, target = data["advice"], data["target"]
        settings = {
            "models_dir": str(self.models_dir),
            "default_model": advice["model"],
            **advice["settings"],
        }
        machine = describe_run()["machine"]
        return (
            f"# {target['profile']}: p99 {advice['p99_ms']:g} ms, at most {self.p99:g} ms were wanted.\n"
            f"# Measured by distillery-bench advise on {machine['cpu']}, {machine['cores']} cores.\n"
            f"{tomli_w.dumps(settings)}"
        )

    def _key(self, entries: dict[str, ModelEntry]) -> str:
        """Return what measurements must have in common to be continued."""
        kept = self.model_dump(mode="json", exclude={"config", "results_dir", "out", "price"})
        files = {name: entry.manifest.sha256 for name, entry in entries.items()}
        run = describe_run()
        facts = [kept, files, run["commit"], run["machine"]["cpu"], run["machine"]["cores"], run["versions"]]
        return sha256(json.dumps(facts, sort_keys=True).encode())


class _Services:
    """Starts services, and compares the answers of each model with onnxruntime's, once."""

    def __init__(self, models_dir: Path, entries: dict[str, ModelEntry]) -> None:
        self._models_dir, self._entries = models_dir, entries
        self._checked: set[str] = set()

    @contextmanager
    def open(self, shape: Shape) -> Iterator["_Service"]:
        """Yield a service that starts when it is first needed: continued measurements may need none."""
        with ExitStack() as stack:
            yield _Service(
                lambda: stack.enter_context(running_service(self._models_dir, *shape.flags())), self._check
            )

    def _check(self, url: str, model: str) -> None:
        if model not in self._checked and not self._entries[model].manifest.cascade:
            check_answers(service_workload(url, model), self._entries[model].path)
            self._checked.add(model)


class _Service:
    def __init__(self, start: Callable[[], ServerProcess], check: Callable[[str, str], None]) -> None:
        self._start, self._check = start, check
        self._server: ServerProcess | None = None

    def serving(self, model: str) -> ServerProcess:
        """Return the running service, which answers correctly for this model."""
        if self._server is None:
            self._server = self._start()
        self._check(self._server.url, model)
        return self._server


class _Runs:
    """All runs so far, in a file: the same command continues after an interruption."""

    def __init__(self, path: Path, key: str, profile: Profile) -> None:
        self._path, self._key, self._profile = path, key, profile
        self._runs: dict[str, dict[str, Any]] = {}
        try:
            kept = json.loads(path.read_bytes())
            if kept["key"] == key:
                self._runs = kept["runs"]
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def run(
        self,
        service: _Service,
        candidate: Candidate,
        seconds: float,
        part: str,
        seed: int,
        *,
        whole: bool = False,
    ) -> Run:
        """Return a run of this part of the work, measured now unless it was before."""
        name = f"{part}: {candidate}"
        if name not in self._runs:
            server = service.serving(candidate.model)
            measured = run_candidate(
                server, candidate, self._profile, seconds=seconds, seed=seed, whole=whole
            )
            self._runs[name] = measured.as_json()
            document = {"key": self._key, "runs": self._runs}
            write_atomically(self._path, json.dumps(document).encode())
        return Run.from_json(self._runs[name])


def _verification(
    several: Sequence[Candidate], runs: _Runs, seconds: float, show: Callable[[str], None]
) -> Callable[[_Service, Candidate, int], Run]:
    def run(service: _Service, candidate: Candidate, number: int) -> Run:
        show(f"verification {number} of {ROUNDS}, {candidate}")
        part = f"verification {number} of {' and '.join(map(str, several))}"
        return runs.run(service, candidate, seconds, part, 1000 + number)

    return run


@contextmanager
def _progress(seconds: float) -> Iterator[Callable[[str], None]]:
    """Show what is measured, and the part of the time that is over."""
    begun = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=seconds)
        yield lambda text: progress.update(task, description=text, completed=time.monotonic() - begun)


def _with_best(text: str, race: Race) -> str:
    best = next(iter(race.cheapest()), None)
    return f"{text} (best: {race.known(best).cpu_us:.0f} µs, {best})" if best else text


def _row(candidate: Candidate, race: Race) -> dict[str, Any]:
    known = race.known(candidate)
    row = {
        "model": candidate.model,
        **candidate.shape.settings(),
        "state": race.states.get(candidate, "no time"),
        "requests": known.requests,
    }
    if not known.runs:
        return row
    return row | {
        "meets_target": not known.hopeless,
        "late_share": round(known.late / max(1, known.requests), 6),
        "p50_ms": _rounded(known.latency_ms(0.5)),
        "p99_ms": _rounded(known.latency_ms(0.99)),
        "cpu_us": round(known.cpu_us, 2),
        "cores": round(known.cores, 4),
        "generator_cores": round(known.generator_cores, 3),
        "generator_lag_p99_ms": max(run.generator_lag_p99_ms for run in known.runs),
    }


def _verified_row(candidate: Candidate, verified: Verified) -> dict[str, Any]:
    known = verified.known(candidate)
    return {
        "model": candidate.model,
        **candidate.shape.settings(),
        "meets_target": known.meets_target,
        "requests": known.requests,
        "late": known.late,
        "late_bound": round(known.late_bound, 6),
        "p50_ms": _rounded(known.latency_ms(0.5)),
        "p99_ms": _rounded(known.latency_ms(0.99)),
        "rounds_p99_ms": [_rounded(Known([run]).latency_ms(0.99)) for run in known.runs],
        "cpu_us": round(median(verified.costs(candidate)), 2),
        "rounds_cpu_us": [round(cost, 2) for cost in verified.costs(candidate)],
        "cores": round(known.cores, 4),
        "generator_cores": round(known.generator_cores, 3),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"
