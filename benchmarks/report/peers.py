"""Section `peers`: our service compared with other systems, as a table and a figure."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.errors import BenchmarkError
from benchmarks.report.figures import COLOURS, save, style
from benchmarks.report.markdown import limits, measured, table
from benchmarks.report.sections import Section, Sources
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
    with_cpu = all(row.get("cpu_us") for row in busy)  # absent from older results
    if with_cpu:
        lines[0].append("CPU time per request")
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
                *([f"{row['cpu_us']:,.0f} µs"] if with_cpu else []),
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


def draw_peers(sources: Sources, path: Path, names: str) -> None:
    """Draw requests/s and latencies of each system and write the figure to `path`."""
    data = sources["peers"].data
    busy, _ = rows_by_connections(data)
    titles = {fact["server"]: fact["title"] for fact in data["servers"]}
    labels = [titles[row["server"]] for row in busy]
    with style():
        figure = Figure(figsize=(10, 0.9 + 0.38 * len(busy)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _rates(left, busy, {fact["server"] for fact in data["servers"] if not fact["versions"]})
        _latencies(right, busy)
        left.set(yticks=range(len(busy)), yticklabels=labels)
        left.invert_yaxis()
        model = busy[0]["model"]
        figure.suptitle(f"{model}: one 28×28 image as JSON, {busy[0]['connections']} connections")
        save(figure, path, names)


def _rates(axes: Axes, rows: list[Row], ours: set[str]) -> None:
    rates = [row["requests_per_s"] for row in rows]
    rounds = [row["rounds"]["requests_per_s"] for row in rows]
    below = [rate - min(others) for rate, others in zip(rates, rounds, strict=True)]
    above = [max(others) - rate for rate, others in zip(rates, rounds, strict=True)]
    colours = [COLOURS[0] if row["server"] in ours else "0.6" for row in rows]
    axes.barh(range(len(rows)), rates, color=colours, height=0.6)
    axes.errorbar(rates, range(len(rows)), xerr=[below, above], fmt="none", ecolor="0.2", capsize=2)
    for place, others in enumerate(rounds):
        axes.annotate(
            f"{rates[place]:,.0f}", (max(others), place), (4, 0), textcoords="offset points", va="center"
        )
    axes.set(title="Requests/s: median, slowest and fastest round")
    axes.margins(x=0.18)  # room for the labels
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:,g}")


def _latencies(axes: Axes, rows: list[Row]) -> None:
    p50, p99 = [row["p50_ms"] for row in rows], [row["p99_ms"] for row in rows]
    axes.hlines(range(len(rows)), p50, p99, color=COLOURS[1], linewidth=3, alpha=0.5)
    axes.plot(p50, range(len(rows)), "o", color=COLOURS[1])
    axes.plot(p99, range(len(rows)), "|", color=COLOURS[1], markersize=9, markeredgewidth=2)
    for place, value in enumerate(p99):
        axes.annotate(f"{value:.3g}", (value, place), (5, 0), textcoords="offset points", va="center")
    axes.set(title="Latency: p50 (dot) to p99, ms", xscale="log")
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.margins(x=0.2)
    axes.grid(axis="x", alpha=0.3)


SECTION = Section(
    name="peers", kinds=("peers",), to_markdown=peers_section, figure="peers.png", draw=draw_peers
)
