"""A result of `distillery-bench peers` as a section of the README."""

from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.report.markdown import limits, measured, table
from benchmarks.report.sections import Sources

Row = dict[str, Any]


def peers_section(sources: Sources, picture: str) -> str:
    """Return the Markdown: each system at the most connections measured, and its p50 at one."""
    source = sources["peers"]
    data = source.data
    busy, calm = rows_by_connections(data)
    connections = busy[0]["connections"]
    facts = {fact["server"]: fact for fact in data["servers"]}
    folder = Path(source.link).parent.parent / "peers"
    header = ["system", f"requests/s, {connections} connections", "rounds", "p50", "p99"]
    lines = [[*header, "p50, 1 connection", "Distillery's requests/s", "memory"]]
    for row in busy:
        rates = row["rounds"]["requests_per_s"]
        lines.append(
            [
                _name(facts[row["server"]], folder),
                f"{row['requests_per_s']:,.0f}",
                f"{min(rates):,.0f} – {max(rates):,.0f}",
                f"{row['p50_ms']:.2f} ms",
                f"{row['p99_ms']:.2f} ms",
                f"{calm[row['server']]['p50_ms']:.2f} ms" if row["server"] in calm else "",
                f"×{row['ours_requests_ratio']:.{0 if row['ours_requests_ratio'] >= 10 else 1}f}",
                f"{facts[row['server']]['memory_mib']:,.0f} MiB",
            ]
        )
    model = next(iter(data["models"]))
    note = (
        f"One image as JSON, the same file of `{model}`, {data['processes']} processes where a system has such a "
        "setting; rounds: slowest and fastest; ×: our requests/s by the system's, median of the ratios within a "
        "round; memory: PSS of all processes after the load."
    )
    versions = {f"{name} {version}" for fact in data["servers"] for name, version in fact["versions"].items()}
    shown = f"![Requests per second and p99 of each system]({picture})"
    return "\n\n".join(
        [
            table(lines),
            note,
            shown,
            measured("peers", source),
            f"Versions of theirs: {', '.join(sorted(versions))}.",
            limits(source),
        ]
    )


def rows_by_connections(data: dict[str, Any]) -> tuple[list[Row], dict[str, Row]]:
    """Return the rows with the most connections, the fastest system first, and those with one by server."""
    most = max(row["connections"] for row in data["rows"])
    if most == 1:
        raise BenchmarkError("the peers result has one connection only; measure again with more")
    busy = [row for row in data["rows"] if row["connections"] == most]
    calm = {row["server"]: row for row in data["rows"] if row["connections"] == 1}
    return sorted(busy, key=lambda row: -row["requests_per_s"]), calm


def _name(fact: dict[str, Any], folder: Path) -> str:
    """The system's title: ours in bold, others with the way to how they were set up."""
    if not fact["versions"]:
        return f"**{fact['title']}**"
    return f"[{fact['title']}]({(folder / fact['server'].replace('-', '_')).as_posix()})"
