"""The picture of a comparison: latency of each model alone and over HTTP, and its throughput."""

from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.report.comparison import Row, compare_models, own_server
from benchmarks.report.sections import Sources

SOURCE_KEY = "Source"  # a key that PNG's specification gives
COLOURS = ("#0072b2", "#e69f00", "#009e73")
"""Okabe and Ito's: told apart by everybody."""


def draw_results(sources: Sources, path: Path, names: str) -> None:
    """Write the picture of a session result and an HTTP result to `path`."""
    session, http = sources["session"].data, sources["http"].data
    rows = compare_models(session, http)
    models = [row["model"] for row in rows]
    with style():
        figure = Figure(figsize=(10, 0.8 + 0.75 * len(models)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        most = rows[0]["connections"]
        own = [row for row in http["rows"] if row["server"] == own_server(http["rows"])]
        _latencies(
            left,
            models,
            {
                "session, 1 image": _by_model(session["rows"], 1e-3, "us", batch=1, threads=1),
                "HTTP, 1 connection": _by_model(own, 1, "ms", body="json", connections=1),
                f"HTTP, {most} connections": _by_model(own, 1, "ms", body="json", connections=most),
            },
        )
        batch = max(row["batch"] for row in session["rows"])
        _rates(
            right,
            models,
            {
                f"session, {batch} images a run": _images(session["rows"], batch=batch, threads=1),
                "HTTP, 64 images a request": _images(own, body="binary-64", connections=most),
                "HTTP, 1 image a request": _images(own, body="json", connections=most),
            },
        )
        save(figure, path, names)


def style() -> AbstractContextManager[None]:
    """Draw inside of this, and all pictures of the README look alike."""
    return mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def save(figure: Figure, path: Path, names: str) -> None:
    """Write a figure to `path` (PNG), with the names of the results it was drawn from inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={SOURCE_KEY: names})


def drawn_from(path: Path) -> str | None:
    """Return the names of the results that a picture was drawn from; None when there is no such picture."""
    if not path.is_file():
        return None
    with Image.open(path, formats=["PNG"]) as picture:
        source = picture.info.get(SOURCE_KEY)
    return str(source) if source else None


Spans = dict[str, tuple[float, float]]


def _by_model(rows: list[Row], scale: float, unit: str, **wanted: object) -> Spans:
    """Return p50 and p99 in milliseconds by model, of the rows that are as `wanted`."""
    chosen = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return {row["model"]: (row[f"p50_{unit}"] * scale, row[f"p99_{unit}"] * scale) for row in chosen}


def _images(rows: list[Row], **wanted: object) -> dict[str, float]:
    chosen = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
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
