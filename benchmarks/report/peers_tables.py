"""Other systems beside our service: ratios, and the tables that `distillery-bench peers` prints."""

from collections.abc import Iterator
from itertools import groupby
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table


def compare_with_ours(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return our service's requests/s by this row's, and its p50 by this row's, at as many connections.

    Ours is the first row's server; ratios are taken within a round, the median is returned.
    """
    ours = next(
        other
        for other in rows
        if other["server"] == rows[0]["server"] and other["connections"] == row["connections"]
    )

    def ratio(figure: str) -> float:
        pairs = zip(ours["rounds"][figure], row["rounds"][figure], strict=True)
        return float(round(median(our / their for our, their in pairs), 3))

    return {"ours_requests_ratio": ratio("requests_per_s"), "ours_p50_ratio": ratio("p50_ms")}


def peers_tables(data: dict[str, Any]) -> Iterator[Table]:
    """Lay out a result: a table for each number of connections."""
    facts = {fact["server"]: fact for fact in data["servers"]}
    for connections, rows in groupby(data["rows"], key=lambda row: row["connections"]):
        table = Table(title=f"{connections} connection(s)", title_justify="left", box=SIMPLE_HEAD)
        for name in ("system", "req/s", "±", "p50", "p99", "ours", "MiB", "idle"):
            table.add_column(name, justify="left" if name == "system" else "right", no_wrap=True)
        for row in rows:
            rates, fact = row["rounds"]["requests_per_s"], facts[row["server"]]
            table.add_row(
                row["server"],
                f"{row['requests_per_s']:,.0f}",
                f"{(max(rates) - min(rates)) / 2 / row['requests_per_s']:.0%}",
                f"{row['p50_ms']:.2f}",
                f"{row['p99_ms']:.2f}",
                f"×{row['ours_requests_ratio']:.2f}",
                f"{fact['memory_mib']:,.0f}",
                f"{fact['idle_cpu_of_a_core']:.1%}",
            )
        yield table
