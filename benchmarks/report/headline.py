"""Section `headline`: teacher, student and int8 student in four rows, for the first screen of the README."""

from collections.abc import Callable

from benchmarks.errors import BenchmarkError
from benchmarks.load.sessions import REFERENCE
from benchmarks.report.comparison import Row, compare_models
from benchmarks.report.markdown import table
from benchmarks.report.sections import Section, Sources
from benchmarks.results.ratio import LEGEND

MODELS = (REFERENCE, "student", "student-int8")


def headline_section(sources: Sources, _: str) -> str:
    """Return the Markdown for a session result and an HTTP result."""
    rows = {row["model"]: row for row in compare_models(sources["session"].data, sources["http"].data)}
    if missing := set(MODELS) - rows.keys():
        raise BenchmarkError(
            f"the results lack {sorted(missing)}: measure again with all models of the recipe quick"
        )
    shown = [rows[name] for name in MODELS]
    teacher, smallest = shown[0], shown[-1]
    figures: dict[str, tuple[Callable[[Row], str], str]] = {
        "test errors of 10,000": (
            lambda row: str(row["test_errors"]),
            f"{smallest['test_errors'] - teacher['test_errors']:+d}".replace("-", "−"),
        ),
        "file": (
            lambda row: f"{row['size_bytes'] / 1e6:.2f} MB",
            f"{smallest['ratios']['size_bytes']:.1f}× smaller",
        ),
        "latency over HTTP, p50": (
            lambda row: f"{row['http_p50_ms']:.2f} ms",
            f"{smallest['ratios']['http_p50_ms']}",
        ),
        "requests/s": (
            lambda row: f"{row['requests_per_s']:,.0f}",
            f"{smallest['ratios']['requests_per_s']}",
        ),
    }
    lines = [["", *(f"`{name}`" for name in MODELS), "gain of int8 over the teacher"]]
    lines += [[label, *(text(row) for row in shown), gain] for label, (text, gain) in figures.items()]
    machine = sources["http"].document["machine"]
    links = ", ".join(f"[{kind}]({source.link})" for kind, source in sources.items())
    note = (
        f"One 28 × 28 image as JSON; latency at one connection, requests/s at {teacher['connections']}; service and "
        f"load generator on {machine['cores']} cores ({machine['cpu']}). {LEGEND}. Results: {links}."
    )
    return f"{table(lines)}\n\n{note}"


SECTION = Section(name="headline", kinds=("session", "http"), to_markdown=headline_section)
