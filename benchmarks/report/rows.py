"""Rows that a table or figure needs and a result does not have: models compared, systems in order, one latency each."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from scipy.stats import binom

from benchmarks.errors import BenchmarkError
from benchmarks.load.sessions import REFERENCE
from benchmarks.results.models import speed_models
from benchmarks.results.ratio import Ratio

Row = dict[str, Any]
OWN_SERVERS = ("inprocess", "service", "workers")
"""The first of these that was measured gives a model's HTTP figures."""
IMPROVEMENTS = {
    "session_p50": ("session", "p50_us"),
    "http_p50": ("calm", "p50_ms"),
    "requests_per_s": ("busy", "requests_per_s"),
    "cpu": ("busy", "cpu_us"),
    "images_per_s": ("large", "requests_per_s"),
}
"""Improvements over the teacher: the row and the figure that are compared."""


def compare_models(session: Row, http: Row, names: Sequence[str] = ()) -> list[Row]:
    """Join the `data` of a session result and an HTTP result: a row for each of `names`, or per model, slowest first.

    A row has the model's facts (`parameters`, `size_bytes`, `test_errors`, ...) and rows of the results: `session` (one
    image, one thread), `calm` and `busy` (one JSON image, at one connection and at the most measured) and `large` (64
    images per request, at the most connections). `timed_as` is the model whose speed was measured for it. The
    improvements over the teacher, None for it, are `session_p50`, `http_p50`, `requests_per_s`, `cpu` and
    `images_per_s` (`Ratio`), `fewer_parameters` and `smaller` (exact).
    Raises `BenchmarkError` when the results are not of the same models, or lack one of `names` or a row.
    """
    if session["models"] != http["models"]:
        raise BenchmarkError(
            f"the session result is of {_hashes(session)}, the HTTP result of {_hashes(http)}: "
            "measure both again with one model repository"
        )
    facts = session["models"]
    if missing := set(names) - facts.keys():
        raise BenchmarkError(
            f"the results lack {sorted(missing)}: measure again with all models of the recipe quick"
        )
    timed_as = speed_models(facts)
    measured = {name: _measured(name, session["rows"], http["rows"]) for name in set(timed_as.values())}
    rows = []
    for name, fact in facts.items():
        own = measured[timed_as[name]]
        row = {"model": name, **fact, "timed_as": timed_as[name], **own}
        row |= dict.fromkeys((*IMPROVEMENTS, "fewer_parameters", "smaller"))
        if REFERENCE in facts and name != REFERENCE:
            teacher, size = measured[timed_as[REFERENCE]], facts[REFERENCE]
            for ratio, (case, figure) in IMPROVEMENTS.items():
                row[ratio] = improvement(own[case], teacher[case], figure)
            row["fewer_parameters"] = size["parameters"] / fact["parameters"]
            row["smaller"] = size["size_bytes"] / fact["size_bytes"]
        rows.append(row)
    if names:
        return sorted(
            (row for row in rows if row["model"] in names), key=lambda row: names.index(row["model"])
        )
    return sorted(rows, key=lambda row: (-row["session"]["p50_us"], row["model"] != REFERENCE, row["model"]))


def _hashes(data: Row) -> list[str]:
    return [f"{name} {facts['sha256'][:8]}" for name, facts in data["models"].items()]


def _measured(model: str, session: list[Row], http: list[Row]) -> dict[str, Row]:
    """Return the rows of one model."""
    server, most = own_server(http), max(row["connections"] for row in http)
    return {
        "session": select(session, model=model, batch=1, threads=1),
        "calm": select(http, server=server, model=model, body="json", connections=1),
        "busy": select(http, server=server, model=model, body="json", connections=most),
        "large": select(http, server=server, model=model, body="binary-64", connections=most),
    }


def select(rows: list[Row], **case: Any) -> Row:
    """Return the first row with these values. Raises `BenchmarkError` where there is none."""
    for row in rows:
        if all(row[key] == value for key, value in case.items()):
            return row
    described = ", ".join(f"{key} {value}" for key, value in case.items())
    raise BenchmarkError(f"no figure for {described}: measure again with the default settings")


def improvement(row: Row, reference: Row, figure: str) -> Ratio | None:
    """Compare a figure of two rows of a session or an HTTP result, within their rounds; None where not measured."""
    rounds = [each.get("rounds") or {figure: each[f"rounds_{figure}"]} for each in (row, reference)]
    if not all(each.get(figure) for each in rounds):
        return None
    ours, theirs = (each[figure] for each in rounds)
    return Ratio.within_rounds(ours, theirs, lower_is_better=figure != "requests_per_s")


def own_server(rows: list[Row]) -> str:
    """Return the server whose rows stand for the models."""
    measured = {row["server"] for row in rows}
    return next(server for server in OWN_SERVERS if server in measured)


def rows_by_connections(data: Row) -> tuple[list[Row], dict[str, Row]]:
    """Return the rows with the most connections, fastest system first, and those with one connection by server."""
    most = max(row["connections"] for row in data["rows"])
    if most == 1:
        raise BenchmarkError("the peers result has one connection only; measure again with more")
    busy = [row for row in data["rows"] if row["connections"] == most]
    single = {row["server"]: row for row in data["rows"] if row["connections"] == 1}
    return sorted(busy, key=lambda row: -row["requests_per_s"]), single


def uncounted_requests(row: Row) -> float:
    """Return the median of the requests that were sent and not counted by the rule at its decision."""
    decided = [one for one in row["rounds"] if one["decision"]]
    return float(median(one["sent"] - one["stable"][1] - one["candidate"][1] for one in decided))


def wrong_decisions(data: Row) -> Row:
    """Return the live decisions that are wrong, of how many, and the probability of as many or more at the bound."""
    wrong = sum(one["decision"] not in {row["right"], None} for row in data["rows"] for one in row["rounds"])
    candidates = sum(row["live"]["streams"] for row in data["rows"])
    bound = data["rule"]["alpha"] / data["criteria"]
    return {
        "wrong": wrong,
        "candidates": candidates,
        "bound": bound,
        "probability": float(binom.sf(wrong - 1, candidates, bound)),
    }


def pareto_rows(data: Row) -> list[Row]:
    """Return the rows of a result; networks of one architecture and precision get one latency, their median.

    Newer results have one measurement for all networks that are alike, and ratios with an interval.
    """
    rows: list[Row] = data["rows"]
    timed_as = speed_models({row["model"]: row for row in rows})

    def shared(row: Row, figure: str) -> Any:
        values = [other[figure] for other in rows if timed_as[other["model"]] == timed_as[row["model"]]]
        return median(values) if isinstance(values[0], float) else values[0]

    figures = [f"{figure}_batch{batch}" for figure in ("p50_us", "speedup") for batch in (1, 64)]
    return [row | {figure: shared(row, figure) for figure in figures} for row in rows]
