"""A result of `distillery-bench peers` as a section of the documentation."""

from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.report.markdown import limits, measured, table
from benchmarks.report.sections import Sources
from benchmarks.results.ratio import Ratio

Row = dict[str, Any]


def peers_section(sources: Sources, figure: str) -> str:
    """Return the Markdown: each system at the most connections measured, and its p50 at one connection."""
    source = sources["peers"]
    data = source.data
    busy, single = rows_by_connections(data)
    facts = {fact["server"]: fact for fact in data["servers"]}
    folder = Path(source.link).parent.parent / "peers"
    header = ["system", f"requests/s, {busy[0]['connections']} connections", "rounds", "p50", "p99"]
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
                f"{single[row['server']]['p50_ms']:.2f} ms" if row["server"] in single else "",
                _ours_by(row, busy, data["servers"][0]["server"]),
                f"{facts[row['server']]['memory_mib']:,.0f} MiB",
            ]
        )
    model = next(iter(data["models"]))
    note = (
        f"One image as JSON, the same file of `{model}`, {data['processes']} processes where a system has such a "
        "setting. rounds: slowest and fastest. Distillery's requests/s: as a multiple of the system's, taken within "
        "each round: median (90 % interval by the sign test); ≈ = undecided. memory: PSS of all processes, after the "
        "load."
    )
    versions = {f"{name} {version}" for fact in data["servers"] for name, version in fact["versions"].items()}
    return "\n\n".join(
        [
            table(lines),
            note,
            f"![Requests per second and p99 of each system]({figure})",
            measured("peers", source),
            f"Versions: {', '.join(sorted(versions))}.",
            limits(source),
        ]
    )


def _ours_by(row: Row, rows: list[Row], ours: str) -> str:
    if row["server"] == ours:
        return ""
    reference = next(other for other in rows if other["server"] == ours)
    return str(Ratio.within_rounds(reference["rounds"]["requests_per_s"], row["rounds"]["requests_per_s"]))


def rows_by_connections(data: dict[str, Any]) -> tuple[list[Row], dict[str, Row]]:
    """Return the rows with the most connections, fastest system first, and those with one connection by server."""
    most = max(row["connections"] for row in data["rows"])
    if most == 1:
        raise BenchmarkError("the peers result has one connection only; measure again with more")
    busy = [row for row in data["rows"] if row["connections"] == most]
    single = {row["server"]: row for row in data["rows"] if row["connections"] == 1}
    return sorted(busy, key=lambda row: -row["requests_per_s"]), single


def _name(fact: dict[str, Any], folder: Path) -> str:
    """Return the system's title: ours in bold, others with a link to their configuration."""
    if not fact["versions"]:
        return f"**{fact['title']}**"
    return f"[{fact['title']}]({(folder / fact['server'].replace('-', '_')).as_posix()})"
