"""The README's table: errors, file size, latency and throughput of teacher, student and int8 student."""

from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.report.comparison import compare_models, own_server
from benchmarks.report.markdown import table
from benchmarks.report.sections import Sources
from benchmarks.results.ratio import Ratio

TEACHER, STUDENT, INT8 = "teacher", "student", "student-int8"
MODELS = (TEACHER, STUDENT, INT8)
METHOD = "docs/benchmarks.md#method"


def summary_section(sources: Sources, _figure: str) -> str:
    """Return the Markdown; a gain is shown where its interval over seeds or rounds excludes no difference.

    Raises `BenchmarkError` if the results lack one of the three models.
    """
    session, http, accuracy = (sources[kind].data for kind in ("session", "http", "accuracy_quick"))
    rows = {row["model"]: row for row in compare_models(session, http)}
    if missing := [name for name in MODELS if name not in rows]:
        raise BenchmarkError(f"the session and HTTP results lack {missing[0]}; measure {', '.join(MODELS)}")
    teacher, int8 = rows[TEACHER], rows[INT8]
    connections = teacher["connections"]
    header = [f"{name}<br>{rows[name]['architecture']}" for name in (TEACHER, STUDENT)]
    lines = [
        ["", *header, "int8 student", "gain"],
        [
            "[test errors](docs/distillation.md) of 10,000",
            *(_mean(accuracy["test_errors"][name]) for name in MODELS),
            _saved(accuracy["saved_by_distillation"]),
        ],
        [
            "file",
            *(f"{rows[name]['size_bytes'] / 1e6:.2f} MB" for name in MODELS),
            f"{teacher['size_bytes'] / int8['size_bytes']:.1f}× smaller",
        ],
        [
            f"[latency]({METHOD}), one image",
            *(f"{rows[name]['session_p50_us']:.0f} µs" for name in MODELS),
            _times(_session_ratio(session), "shorter"),
        ],
        [
            f"[throughput]({METHOD}), {connections} connections",
            *(f"{rows[name]['requests_per_s']:,.0f}/s" for name in MODELS),
            _times(_http_ratio(http, connections), "more"),
        ],
    ]
    machine = sources["http"].document["machine"]
    seeds = len(accuracy["test_errors"][STUDENT]["values"])
    links = ", ".join(
        f"[{name}]({sources[kind].link})"
        for name, kind in (("errors", "accuracy_quick"), ("latency", "session"), ("throughput", "http"))
    )
    note = (
        f"Errors: mean ± 95 % interval of {seeds} seeds, recipe `{accuracy['recipe']}`. Latency: p50 of onnxruntime, "
        "one thread. Throughput: HTTP requests with one JSON image, client and service on the same "
        f"{machine['cores']} cores ({machine['cpu']}). Gain: int8 student against teacher, median and 90 % interval of "
        f"the rounds. Results: {links}."
    )
    return "\n\n".join([table(lines), note])


def _mean(errors: dict[str, Any]) -> str:
    interval = errors["interval_95"]
    return f"{errors['mean']:.0f}" if interval is None else f"{errors['mean']:.1f} ± {interval:.1f}"


def _saved(saved: dict[str, Any]) -> str:
    """Return the errors that distillation saves; nothing if the interval includes none."""
    if saved["interval_95"] is None or saved["mean"] - saved["interval_95"] <= 0:
        return ""
    return f"{_mean(saved)} fewer than without a teacher"


def _times(ratio: Ratio, better: str) -> str:
    if not ratio.decided:
        return "undecided"
    return f"{ratio.median:.1f}× {better} ({ratio.low:.1f}–{ratio.high:.1f})"


def _session_ratio(session: dict[str, Any]) -> Ratio:
    rounds = {
        row["model"]: row["rounds_p50_us"]
        for row in session["rows"]
        if (row["batch"], row["threads"]) == (1, 1)
    }
    return Ratio.within_rounds(rounds[INT8], rounds[TEACHER], lower_is_better=True)


def _http_ratio(http: dict[str, Any], connections: int) -> Ratio:
    alike = (own_server(http["rows"]), "json", connections)
    rounds = {
        row["model"]: row["rounds"]["requests_per_s"]
        for row in http["rows"]
        if (row["server"], row["body"], row["connections"]) == alike
    }
    return Ratio.within_rounds(rounds[INT8], rounds[TEACHER])
