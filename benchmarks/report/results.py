"""Section `results`: models and servers compared, from a session result and an HTTP result."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report.comparison import Row, compare_models, own_server
from benchmarks.report.figures import COLOURS, save, style
from benchmarks.report.markdown import limits, measured, table, with_ratio
from benchmarks.report.sections import Section, Sources
from benchmarks.results.ratio import LEGEND

Spans = dict[str, tuple[float, float]]
"""p50 and p99 by model."""


def results_section(sources: Sources, figure: str) -> str:
    """Return the Markdown: a table of models, one of servers, the figure, how it was measured."""
    http = sources["http"].data
    rows = compare_models(sources["session"].data, http)
    return "\n\n".join(
        [
            _models_table(rows),
            _servers_table(rows, http["rows"]),
            f"![Latency and throughput of each model, in a session and over HTTP]({figure})",
            "\n".join(measured(kind, source) for kind, source in sources.items()),
            limits(sources["http"]),
        ]
    )


def _models_table(rows: list[Row]) -> str:
    connections = rows[0]["connections"]
    columns = {
        "parameters": "parameters",
        "size_bytes": "file",
        "test_errors": "test errors (accuracy)",
        "session_p50_us": "session p50 / p99",
        "http_p50_ms": "HTTP p50 / p99",
        "requests_per_s": f"requests/s, {connections} connections",
        "cpu_us": "CPU time per prediction",
        "images_per_s": "images/s, 64 per request",
    }
    columns = {key: title for key, title in columns.items() if rows[0][key] is not None}
    lines = [["model", *columns.values()], *(_model_cells(row, list(columns)) for row in rows)]
    note = (
        f"{LEGEND}. Session: onnxruntime alone, one image, one thread. HTTP: one image as JSON, one connection. "
        "Networks that differ in their weights alone have one speed."
    )
    return f"{table(lines)}\n\n{note}"


def _model_cells(row: Row, columns: list[str]) -> list[str]:
    texts = {
        "parameters": f"{row['parameters'] / 1e6:.2f} M",
        "size_bytes": f"{row['size_bytes'] / 1e6:.2f} MB",
        "test_errors": f"{row['test_errors']} ({row['test_accuracy']:.2%})",
        "session_p50_us": f"{row['session_p50_us']:.0f} / {row['session_p99_us']:.0f} µs",
        "http_p50_ms": f"{row['http_p50_ms']:.2f} / {row['http_p99_ms']:.2f} ms",
        "requests_per_s": f"{row['requests_per_s']:,.0f}",
        "cpu_us": f"{row['cpu_us'] or 0:.0f} µs",
        "images_per_s": f"{row['images_per_s'] or 0:,.0f}",
    }
    cells = [with_ratio(texts[key], row["ratios"].get(key)) for key in columns]
    if row["timed_as"] != row["model"]:
        timed = set(columns) - {"parameters", "size_bytes", "test_errors"}
        cells = [
            f"as `{row['timed_as']}`" if key in timed else cell
            for key, cell in zip(columns, cells, strict=True)
        ]
    return [f"`{row['model']}` {row['architecture']} {row['precision']}", *cells]


def _servers_table(models: list[Row], rows: list[Row]) -> str:
    connections = models[0]["connections"]
    alike = [row for row in rows if (row["body"], row["connections"]) == ("json", connections)]
    cells = {(row["server"], row["model"]): _server_cell(row) for row in alike}
    own = own_server(rows)
    servers = sorted({row["server"] for row in alike}, key=lambda server: (server != own, server))
    names = [row["model"] for row in models if row["timed_as"] == row["model"]]
    lines = [["server", *(f"`{name}`" for name in names)]]
    lines += [[server, *(cells.get((server, name), "") for name in names)] for server in servers]
    note = f"Requests/s, in brackets p50 / p99: one image as JSON, {connections} connections."
    return f"{table(lines)}\n\n{note}"


def _server_cell(row: Row) -> str:
    return f"{row['requests_per_s']:,.0f} ({row['p50_ms']:.2f} / {row['p99_ms']:.2f} ms)"


def draw_results(sources: Sources, path: Path, names: str) -> None:
    """Write the figure of a session result and an HTTP result to `path`."""
    session, http = sources["session"].data, sources["http"].data
    rows = [row for row in compare_models(session, http) if row["timed_as"] == row["model"]]
    models = [row["model"] for row in rows]
    with style():
        figure = Figure(figsize=(10, 0.8 + 0.75 * len(models)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        most = rows[0]["connections"]
        own = [
            row
            for row in http["rows"]
            if row["server"] == own_server(http["rows"]) and row["model"] in models
        ]
        alone = [row for row in session["rows"] if row["model"] in models]
        _latencies(
            left,
            models,
            {
                "session, 1 image": _by_model(alone, 1e-3, "us", batch=1, threads=1),
                "HTTP, 1 connection": _by_model(own, 1, "ms", body="json", connections=1),
                f"HTTP, {most} connections": _by_model(own, 1, "ms", body="json", connections=most),
            },
        )
        batch = max(row["batch"] for row in alone)
        _rates(
            right,
            models,
            {
                f"session, {batch} images per run": _images(alone, batch=batch, threads=1),
                "HTTP, 64 images per request": _images(own, body="binary-64", connections=most),
                "HTTP, 1 image per request": _images(own, body="json", connections=most),
            },
        )
        save(figure, path, names)


def _by_model(rows: list[Row], scale: float, unit: str, **selected: object) -> Spans:
    """Return p50 and p99 in milliseconds by model, of the selected rows."""
    chosen = [row for row in rows if all(row[key] == value for key, value in selected.items())]
    return {row["model"]: (row[f"p50_{unit}"] * scale, row[f"p99_{unit}"] * scale) for row in chosen}


def _images(rows: list[Row], **selected: object) -> dict[str, float]:
    chosen = [row for row in rows if all(row[key] == value for key, value in selected.items())]
    return {row["model"]: row["images_per_s"] for row in chosen}


def _latencies(axes: Axes, models: list[str], series: dict[str, Spans]) -> None:
    for number, (label, spans) in enumerate(series.items()):
        heights = [models.index(model) + 0.25 * (number - 1) for model in spans]
        p50, p99 = ([span[end] for span in spans.values()] for end in (0, 1))
        axes.hlines(heights, p50, p99, color=COLOURS[number], linewidth=3, alpha=0.5)
        axes.plot(p50, heights, "o", color=COLOURS[number], label=label)
        _label(axes, p50, heights, "{:.3g}")
    axes.set(title="Latency: p50 (dot) to p99, ms", yticks=range(len(models)), yticklabels=models)
    _finish(axes)
    axes.invert_yaxis()


def _rates(axes: Axes, models: list[str], series: dict[str, dict[str, float]]) -> None:
    for number, (label, rates) in enumerate(series.items()):
        heights = [models.index(model) + 0.25 * (number - 1) for model in rates]
        axes.plot(list(rates.values()), heights, "s", color=COLOURS[number], label=label)
        _label(axes, list(rates.values()), heights, "{:,.0f}")
    axes.set(title="Throughput, images/s")
    _finish(axes)


def _label(axes: Axes, values: list[float], heights: list[float], form: str) -> None:
    for value, height in zip(values, heights, strict=True):
        text = form.format(value)
        axes.annotate(text, (value, height), (-6, 0), textcoords="offset points", ha="right", va="center")


def _finish(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.margins(x=0.25)  # room for the labels
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False)


SECTION = Section(
    name="results",
    kinds=("session", "http"),
    to_markdown=results_section,
    figure="latency.png",
    draw=draw_results,
)
