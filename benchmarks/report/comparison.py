"""What a small model gains and loses against the teacher, from one session result and one HTTP result."""

from collections.abc import Callable
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.load.sessions import REFERENCE

Row = dict[str, Any]
OWN_SERVERS = ("inprocess", "service", "workers")
"""Whose HTTP figures stand for a model: the first of these that was measured."""


def compare_models(session: dict[str, Any], http: dict[str, Any]) -> list[Row]:
    """Join the `data` of a session result and an HTTP result, a row per model, the slowest model first.

    A row has the model's facts (`parameters`, `size_bytes`, `test_errors`, ...), `session_p50_us` and
    `session_p99_us` (one image, one thread), `http_p50_ms` and `http_p99_ms` (one JSON image, one
    connection), `requests_per_s` (one JSON image, the most connections measured), `images_per_s` (64 images
    a request, as many connections; None when that was not measured), and `ratios`: for each of these figures
    how many times better than the teacher's it is. Raises `BenchmarkError` when the two results are not of
    the same models.
    """
    if session["models"] != http["models"]:
        raise BenchmarkError(
            f"the session result is of {_versions(session)}, the HTTP result of {_versions(http)}: "
            "measure both again over one model repository"
        )
    rows = [
        _figures(name, session["rows"], http["rows"]) | facts for name, facts in session["models"].items()
    ]
    rows.sort(key=lambda row: -row["session_p50_us"])
    reference = next((row for row in rows if row["model"] == REFERENCE), None)
    for row in rows:
        row["ratios"] = _ratios(row, reference) if reference else {}
    return rows


def _figures(model: str, session: list[Row], http: list[Row]) -> Row:
    def only(rows: list[Row], what: str, wanted: Callable[[Row], bool]) -> Row:
        found = [row for row in rows if row["model"] == model and wanted(row)]
        if not found:
            raise BenchmarkError(
                f"there is no figure for {model}, {what}: measure again with the default settings"
            )
        return found[0]

    server = own_server(http)
    connections = max(row["connections"] for row in http)
    alone = only(session, "one image, one thread", lambda row: (row["batch"], row["threads"]) == (1, 1))
    single = [row for row in http if row["server"] == server and row["body"] == "json"]
    calm = only(single, "one connection", lambda row: row["connections"] == 1)
    busy = only(single, f"{connections} connections", lambda row: row["connections"] == connections)
    big = (server, model, "binary-64", connections)
    images_per_s = [
        row["images_per_s"]
        for row in http
        if (row["server"], row["model"], row["body"], row["connections"]) == big
    ]
    return {
        "model": model,
        "session_p50_us": alone["p50_us"],
        "session_p99_us": alone["p99_us"],
        "http_p50_ms": calm["p50_ms"],
        "http_p99_ms": calm["p99_ms"],
        "connections": connections,
        "requests_per_s": busy["requests_per_s"],
        "images_per_s": images_per_s[0] if images_per_s else None,
    }


def own_server(rows: list[Row]) -> str:
    """Return which server's rows stand for the models."""
    measured = {row["server"] for row in rows}
    return next(server for server in OWN_SERVERS if server in measured)


def _ratios(row: Row, teacher: Row) -> dict[str, float]:
    less_is_better = (
        "parameters",
        "size_bytes",
        "session_p50_us",
        "session_p99_us",
        "http_p50_ms",
        "http_p99_ms",
    )
    ratios = {name: teacher[name] / row[name] for name in less_is_better}
    for name in ("requests_per_s", "images_per_s"):
        if row[name] and teacher[name]:
            ratios[name] = row[name] / teacher[name]
    return ratios


def _versions(data: dict[str, Any]) -> list[str]:
    return [f"{name} {facts['sha256'][:8]}" for name, facts in data["models"].items()]
