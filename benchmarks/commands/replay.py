"""`distillery-bench replay`: a request log as a load, and as a regression test of a candidate."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import httpx
from pydantic import Field, PositiveFloat, PositiveInt
from rich.console import Console

from benchmarks.commands.bench import Bench, UrlSettings
from benchmarks.errors import BenchmarkError
from benchmarks.feedback.comparison import compare
from benchmarks.feedback.models import Named, from_repository, from_service
from benchmarks.load.latency import Latencies
from benchmarks.load.open_loop import follow
from benchmarks.load.overload import Clients
from benchmarks.load.recorded import Recorded, recorded_requests
from benchmarks.systems.servers import running_service
from distillery import Metavar
from distillery.request_log.read import RequestLog, read_log

PATIENCE_S = 30


class Replay(Bench, UrlSettings):
    """Send a log's requests again, or compare a candidate on its images.

    Without a candidate, the busiest part of the log is sent to the service at the recorded times, whether or not
    earlier requests have been answered: latencies, errors and throughput. An image that was logged with probability p
    stands for 1/p images.

    With a candidate: predictions that change, and errors of both on labelled images, compared by McNemar's exact test.
    If one of them was trained from a log, only images that are held out from every training count. Exits with status 1
    if the candidate is significantly worse, or changes more than --max-changed.
    """

    limitations = (
        "a log holds more uncertain images than the traffic: errors in it are not those of the traffic",
        "the load generator shares the cores with a service on the same machine",
    )
    examples = (
        "distillery-bench replay --log log --speed 2",
        "distillery-bench replay --log log --stable fast/1 --candidate fast/2",
        "distillery-bench replay --log log --url http://127.0.0.1:8000 --seconds 10",
    )

    log: Annotated[Path, Metavar("DIR")] = Field(description="folder of the request log")
    newest: PositiveInt = Field(100_000, description="images of the log to use, the newest ones")
    models_dir: Path = Field(Path("models"), description="model repository, without --url")
    api_key: str | None = Field(None, description="API key for the service")

    candidate: Annotated[str | None, Metavar("MODEL/VERSION")] = Field(
        None, description="model to compare with the stable one"
    )
    stable: Annotated[str | None, Metavar("MODEL/VERSION")] = Field(
        None, description="with --candidate: the model that it is to replace"
    )
    alpha: float = Field(
        0.05, gt=0, lt=1, description="level of the test: below this p, a difference is significant"
    )
    max_changed: float | None = Field(
        None, ge=0, le=1, description="largest share of the images whose digit may change"
    )

    speed: PositiveFloat = Field(1, description="factor of the recorded speed")
    seconds: PositiveFloat = Field(60, description="length of the load: the busiest part of the log")
    scale: bool = Field(True, description="send as many requests as were made, rather than as were logged")
    model: str | None = Field(None, description="model that gets the requests; default: the recorded ones")
    connections: PositiveInt = Field(64, description="connections to the service")

    def measure(self) -> dict[str, Any]:
        if self.candidate is None and self.stable:
            raise BenchmarkError(f"--stable {self.stable}: name the model to compare with --candidate")
        if self.candidate and self.stable is None:
            raise BenchmarkError(f"--candidate {self.candidate}: name the model to compare with --stable")
        log = read_log(self.log, newest=self.newest)
        kind = self._compare(log) if self.candidate else self._load(log)
        return {"load": None, "comparison": None, **kind, "rows": []}

    def summary(self, data: dict[str, Any]) -> dict[str, Any]:
        comparison: dict[str, Any] | None = data["comparison"]
        if comparison is None:
            load = data["load"]
            return {key: load[key] for key in load if key != "histogram"}
        if comparison["problems"]:
            raise BenchmarkError(f"{self.candidate}: {'; '.join(comparison['problems'])}")
        return {"changed": comparison["changes"]["share"], "accuracy": comparison["accuracy"]}

    def _compare(self, log: RequestLog) -> dict[str, Any]:
        with ExitStack() as stack:
            stable, candidate = (
                self._named(stack, option, str(reference))
                for option, reference in (("--stable", self.stable), ("--candidate", self.candidate))
            )
            held_out = stable.learned_from_log or candidate.learned_from_log
            found = compare(log, stable.predict, candidate.predict, held_out=held_out)
        if found["accuracy"] is None and self.max_changed is None:
            raise BenchmarkError(
                f"--log {self.log}: none of its {found['images']:,} images has a label"
                + (" and is held out from training" if held_out else "")
                + ", so errors cannot be compared; send feedback to the service, or use --max-changed"
            )
        found |= {
            "stable": {"model": stable.reference, **stable.facts},
            "candidate": {"model": candidate.reference, **candidate.facts},
            "alpha": self.alpha,
            "max_changed": self.max_changed,
        }
        return {"comparison": found | {"problems": problems(found)}}

    def _named(self, stack: ExitStack, option: str, reference: str) -> Named:
        if self.url is None:
            return from_repository(option, reference, self.models_dir)
        headers = {"X-API-Key": self.api_key} if self.api_key else {}
        client = stack.enter_context(httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE_S))
        return from_service(option, reference, client)

    def _load(self, log: RequestLog) -> dict[str, Any]:
        with ExitStack() as stack:
            url = self.url or stack.enter_context(running_service(self.models_dir)).url
            recorded = recorded_requests(
                log,
                url,
                model=self.model,
                speed=self.speed,
                scale=self.scale,
                seconds=self.seconds,
                key=self.api_key,
            )
            schedule = recorded.schedule
            seconds = schedule.due[-1]
            notice = f"{len(schedule.due):,} requests in {seconds:.1f} s"
            address = httpx.URL(url)
            clients = Clients(
                address.host, address.port or 80, self.connections, recorded.requests, PATIENCE_S
            )
            stack.callback(clients.close)
            with Console(stderr=True).status(notice):
                report = follow(clients, recorded.requests, schedule, len(schedule.due))
        return {"load": self._described(recorded, report)}

    def _described(self, recorded: Recorded, report: dict[str, Any]) -> dict[str, Any]:
        due = recorded.schedule.due
        latencies = Latencies.from_counts(dict(report["latency_us"])) if report["latency_us"] else None
        answered = report["statuses"].get(200, 0)
        return {
            "speed": self.speed,
            "scaled": self.scale,
            "connections": self.connections,
            "seconds": round(due[-1], 3),
            "recorded": len(recorded.requests),
            "requests": len(due),
            "images": recorded.sent_images,
            "answered": answered,
            "failed": len(due) - answered,
            "statuses": {str(status): count for status, count in sorted(report["statuses"].items())},
            "requests_per_s": round(len(due) / max(due[-1], 1e-3), 2),
            **({} if latencies is None else latencies.quantiles("ms")),
            "p999_ms": latencies and round(latencies.quantile(0.999) / 1e3, 4),
            "lag_p99_ms": report["lag_p99_ms"],
            "generator_cores": report["generator_cores"],
            "histogram": latencies and latencies.compact(),
        }


def problems(comparison: dict[str, Any]) -> list[str]:
    """Return why a candidate must not replace the stable model, nothing if it may."""
    found = []
    accuracy, changes, limit = comparison["accuracy"], comparison["changes"], comparison["max_changed"]
    more = accuracy and accuracy["only_candidate_wrong"] > accuracy["only_stable_wrong"]
    if more and accuracy["p"] < comparison["alpha"]:
        found.append(
            f"{accuracy['candidate']['errors']} errors instead of {accuracy['stable']['errors']} on "
            f"{accuracy['images']:,} labelled images (p = {accuracy['p']:.2g})"
        )
    if limit is not None and changes["share"] > limit:
        found.append(f"{changes['share']:.2%} of the digits change, {limit:.2%} at most (--max-changed)")
    return found
