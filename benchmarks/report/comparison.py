"""A small model against the teacher, from one session result and one HTTP result."""

from collections.abc import Callable
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.load.sessions import REFERENCE
from benchmarks.results.models import speed_models
from benchmarks.results.ratio import Ratio

Row = dict[str, Any]
OWN_SERVERS = ("inprocess", "service", "workers")
"""The first of these that was measured gives a model's HTTP figures."""


def compare_models(session: Row, http: Row) -> list[Row]:
    """Join the `data` of a session result and an HTTP result: a row per model, the slowest model first.

    A row has the model's facts (`parameters`, `size_bytes`, `test_errors`, ...) and these figures: `session_p50_us` and
    `session_p99_us` (one image, one thread), `http_p50_ms` and `http_p99_ms` (one JSON image, one connection),
    `requests_per_s` and `cpu_us` (one JSON image, the most connections measured; CPU time per prediction), and
    `images_per_s` (64 images per request, as many connections); `cpu_us` and `images_per_s` are None where not
    measured. `timed_as` is the model whose speed was measured for it. `ratios` has the improvement over the teacher of
    each figure (`Ratio`, or a number for `parameters` and `size_bytes`).
    Raises `BenchmarkError` when the two results are not of the same models.
    """
    if session["models"] != http["models"]:
        raise BenchmarkError(
            f"the session result is of {_versions(session)}, the HTTP result of {_versions(http)}: "
            "measure both again with one model repository"
        )
    facts = session["models"]
    timed_as = speed_models(facts)
    figures = {name: _Figures(name, session["rows"], http["rows"]) for name in set(timed_as.values())}
    teacher = figures[timed_as[REFERENCE]] if REFERENCE in facts else None
    rows = []
    for name, fact in facts.items():
        own = figures[timed_as[name]]
        ratios: dict[str, Ratio | float] = {}
        if teacher and name != REFERENCE:
            ratios = own.ratios(teacher)
            ratios |= {key: facts[REFERENCE][key] / fact[key] for key in ("parameters", "size_bytes")}
        rows.append({"model": name, **fact, **own.values, "timed_as": timed_as[name], "ratios": ratios})
    return sorted(rows, key=lambda row: (-row["session_p50_us"], row["model"] != REFERENCE, row["model"]))


class _Figures:
    """The figures of one model, and their rounds."""

    def __init__(self, model: str, session: list[Row], http: list[Row]) -> None:
        def only(rows: list[Row], case: str, matches: Callable[[Row], bool]) -> Row:
            found = [row for row in rows if row["model"] == model and matches(row)]
            if not found:
                raise BenchmarkError(
                    f"no figure for {model}, {case}: measure again with the default settings"
                )
            return found[0]

        server = own_server(http)
        connections = max(row["connections"] for row in http)
        single = [row for row in http if row["server"] == server and row["body"] == "json"]
        self.session = only(
            session, "one image, one thread", lambda row: (row["batch"], row["threads"]) == (1, 1)
        )
        self.calm = only(single, "one connection", lambda row: row["connections"] == 1)
        self.busy = only(single, f"{connections} connections", lambda row: row["connections"] == connections)
        big = (server, model, "binary-64", connections)
        self.big = next(
            (row for row in http if (row["server"], row["model"], row["body"], row["connections"]) == big),
            None,
        )
        self.values = {
            "session_p50_us": self.session["p50_us"],
            "session_p99_us": self.session["p99_us"],
            "http_p50_ms": self.calm["p50_ms"],
            "http_p99_ms": self.calm["p99_ms"],
            "connections": connections,
            "requests_per_s": self.busy["requests_per_s"],
            "cpu_us": self.busy.get("cpu_us"),
            "images_per_s": self.big and self.big["images_per_s"],
        }

    def ratios(self, teacher: "_Figures") -> dict[str, Ratio | float]:
        """Return the improvement of each figure over the teacher's, within the rounds of a case."""

        def http(case: str, figure: str, *, lower_is_better: bool = False) -> Ratio:
            ours, theirs = getattr(self, case)["rounds"], getattr(teacher, case)["rounds"]
            return Ratio.within_rounds(ours[figure], theirs[figure], lower_is_better=lower_is_better)

        ratios: dict[str, Ratio | float] = {
            "session_p50_us": Ratio.within_rounds(
                self.session["rounds_p50_us"], teacher.session["rounds_p50_us"], lower_is_better=True
            ),
            "http_p50_ms": http("calm", "p50_ms", lower_is_better=True),
            "requests_per_s": http("busy", "requests_per_s"),
        }
        if self.values["cpu_us"] and teacher.values["cpu_us"]:
            ratios["cpu_us"] = http("busy", "cpu_us", lower_is_better=True)
        if self.big and teacher.big:
            ratios["images_per_s"] = http("big", "requests_per_s")
        return ratios


def own_server(rows: list[Row]) -> str:
    """Return the server whose rows stand for the models."""
    measured = {row["server"] for row in rows}
    return next(server for server in OWN_SERVERS if server in measured)


def _versions(data: Row) -> list[str]:
    return [f"{name} {facts['sha256'][:8]}" for name, facts in data["models"].items()]
