"""Section `headline`: teacher, student and int8 student in four rows, for the first screen of the README."""

from collections.abc import Callable
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.load.sessions import REFERENCE
from benchmarks.report.comparison import Row, compare_models
from benchmarks.report.markdown import mean_cell, table
from benchmarks.report.sections import Section, Sources
from benchmarks.results.ratio import LEGEND

ERRORS, METHOD = "docs/distillation.md", "docs/benchmarks.md#method"
MODELS = (REFERENCE, "student", "student-int8")


def headline_section(sources: Sources, _: str) -> str:
    """Return the Markdown: errors over seeds, file size, latency and throughput.

    The gain in errors is that of distillation, if its interval over the seeds excludes zero. Raises `BenchmarkError` if
    the results lack one of the three models.
    """
    accuracy = sources["accuracy_quick"].data
    rows = {row["model"]: row for row in compare_models(sources["session"].data, sources["http"].data)}
    if missing := set(MODELS) - rows.keys():
        raise BenchmarkError(
            f"the results lack {sorted(missing)}: measure again with all models of the recipe quick"
        )
    shown = [rows[name] for name in MODELS]
    teacher, smallest = shown[0], shown[-1]
    figures: dict[str, tuple[Callable[[Row], str], str]] = {
        f"[test errors]({ERRORS}) of 10,000": (
            lambda row: _mean(accuracy["test_errors"][row["model"]]),
            _saved(accuracy["saved_by_distillation"]),
        ),
        "file": (
            lambda row: f"{row['size_bytes'] / 1e6:.2f} MB",
            f"{smallest['ratios']['size_bytes']:.1f}× smaller",
        ),
        f"[latency]({METHOD}) over HTTP, p50": (
            lambda row: f"{row['http_p50_ms']:.2f} ms",
            f"{smallest['ratios']['http_p50_ms']}",
        ),
        f"[throughput]({METHOD})": (
            lambda row: f"{row['requests_per_s']:,.0f}/s",
            f"{smallest['ratios']['requests_per_s']}",
        ),
    }
    lines = [["", *(f"`{name}`" for name in MODELS), "gain"]]
    lines += [[label, *(text(row) for row in shown), gain] for label, (text, gain) in figures.items()]
    machine = sources["http"].document["machine"]
    links = ", ".join(f"[{kind}]({source.link})" for kind, source in sources.items())
    seeds = len(accuracy["test_errors"][REFERENCE]["values"])
    note = (
        f"Errors: mean ± 95 % interval of {seeds} seeds, recipe `{accuracy['recipe']}`. One 28 × 28 image as JSON; "
        f"latency at one connection, throughput at {teacher['connections']}; service and load generator on "
        f"{machine['cores']} cores ({machine['cpu']}). Gain: of the int8 student. {LEGEND}. Results: {links}."
    )
    return f"{table(lines)}\n\n{note}"


def _mean(errors: dict[str, Any]) -> str:
    return mean_cell(errors["mean"], errors["interval_95"])


def _saved(saved: dict[str, Any]) -> str:
    if saved["interval_95"] is None or saved["mean"] - saved["interval_95"] <= 0:
        return "≈"
    return f"{_mean(saved)} fewer than without teacher"


SECTION = Section(name="headline", kinds=("accuracy_quick", "session", "http"), to_markdown=headline_section)
