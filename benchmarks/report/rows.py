"""Rows that a table or figure needs and a result does not have: models compared, systems in order, one latency each."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.load.sessions import REFERENCE
from benchmarks.results.models import speed_models
from benchmarks.results.ratio import Ratio

Row = dict[str, Any]
OWN_SERVERS = ("inprocess", "service", "workers")
"""The first of these that was measured gives a model's HTTP figures."""


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
    teacher = measured[timed_as[REFERENCE]] if REFERENCE in facts else None
    rows = []
    for name, fact in facts.items():
        own, other = measured[timed_as[name]], teacher if name != REFERENCE else None
        rows.append(
            {
                "model": name,
                **fact,
                **own,
                "timed_as": timed_as[name],
                "session_p50": _improvement(own, other, "session", "rounds_p50_us"),
                "http_p50": _improvement(own, other, "calm", "p50_ms"),
                "requests_per_s": _improvement(own, other, "busy", "requests_per_s"),
                "cpu": _improvement(own, other, "busy", "cpu_us"),
                "images_per_s": _improvement(own, other, "large", "requests_per_s"),
                "fewer_parameters": facts[REFERENCE]["parameters"] / fact["parameters"] if other else None,
                "smaller": facts[REFERENCE]["size_bytes"] / fact["size_bytes"] if other else None,
            }
        )
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


def _improvement(own: Row, teacher: Row | None, case: str, figure: str) -> Ratio | None:
    """Compare a figure with the teacher's, within the rounds of a case."""
    if teacher is None:
        return None
    ours, theirs = (row[case].get("rounds", row[case])[figure] for row in (own, teacher))
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
