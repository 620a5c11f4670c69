"""Make the figures of docs/operations.md: `python docs/monitoring/make.py [MODELS_DIR]`.

A service of these models is put under load for two minutes, with bursts of rejected requests, next to a Prometheus
whose windows are 60 times as short as usual. The dashboards are drawn from that Prometheus's responses to their
queries, each panel at its place: Grafana is in docker/compose.yaml, but nothing here needs it. `top.svg` is the screen
of `distillery-bench top`. Needs Debian's prometheus (make system).
"""

import io
import json
import random
import sys
import threading
import time
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image
from rich.console import Console

from benchmarks.monitor.scrape import Growth, Service
from benchmarks.monitor.screen import screen
from benchmarks.monitor.state import state_of
from tests.monitoring.description import DOCKER
from tests.support.prometheus import Prometheus, running_prometheus
from tests.support.requests.connections import connect, post
from tests.support.service import running_service
from tests.support.training.samples import sample_test

HERE = Path(__file__).parent
SECONDS = 120
SHOWN_S = 100
"""The last part of the load, in which all windows have data."""
BURST_AFTER_S = 65
BURSTS = 4
RATE = 12
"""Requests per second and model."""
MAX_IN_FLIGHT = 8
FASTER = 60
WINDOW = "15s"
COLOURS = (
    "#5794f2",
    "#73bf69",
    "#f2994a",
    "#b877d9",
    "#f2495c",
    "#33a2b5",
    "#c4a000",
    "#8a8a8a",
    "#a16207",
    "#1f60c4",
)
INCH_PER_COLUMN, INCH_PER_ROW = 0.62, 0.3
STYLES = ("-", "--", ":", "-.")
MARKS = ("━", "╍", "┅", "╌")
LETTERS = 30
LINES = 14
"""In a legend."""


def substituted(expression: str, model: str = ".+") -> str:
    """Return a query as Grafana sends it."""
    for name, value in (
        ("job", ".+"),
        ("instance", ".+"),
        ("model", model),
        ("__rate_interval", WINDOW),
        ("price", "0.04"),
    ):
        expression = expression.replace(f"${name}", value)
    return expression


def readable(value: float, unit: str, decimals: int | None = None) -> str:
    """Return a number in the unit of its panel."""
    if unit == "s":
        size, name = next(
            ((size, name) for size, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")) if abs(value) >= size),
            (1e-6, "µs"),
        )
        return f"{value / size:.3g} {name}"
    if unit == "percentunit":
        return f"{value * 100:.{1 if decimals is None else decimals}f} %"
    if unit in ("bytes", "decbytes"):
        return f"{value / 1e6:.3g} MB"
    if unit in ("none", "short") and value >= 1e4:
        return f"{value / 1e6:.3g} M" if value >= 1e6 else f"{value / 1e3:.3g} k"
    ends = {"reqps": " req/s", "ops": "/s"}
    text = f"{value:.{decimals}f}" if decimals is not None else f"{value:.3g}"
    return f"${text}" if unit == "currencyUSD" else text + ends.get(unit, "")


class Drawing:
    """A dashboard drawn from the responses of a Prometheus."""

    def __init__(
        self, prometheus: Prometheus, dashboard: dict[str, Any], models: list[str], end: float
    ) -> None:
        self._prometheus = prometheus
        self._dashboard = dashboard
        self._models = models
        self._end = end
        self._colours: dict[str, str] = {}
        self._quantities: dict[str, int] = {}

    def draw(self) -> Figure:
        """Return the figure: every panel at its place in the grid."""
        panels = self._dashboard["panels"]
        height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
        figure = Figure(figsize=(24 * INCH_PER_COLUMN, (height + 1.5) * INCH_PER_ROW), facecolor="#f4f5f5")
        total = height + 1.5
        figure.text(0.008, 1 - 0.9 / total, self._dashboard["title"], fontsize=13, weight="bold", va="center")
        for panel in panels:
            place = panel["gridPos"]
            top = 1 - (place["y"] + 1.5) / total
            if panel["type"] == "row":
                figure.text(0.008, top - 0.5 / total, panel["title"], fontsize=11, weight="bold", va="center")
                continue
            left, width = place["x"] / 24, place["w"] / 24
            box = figure.add_axes(
                (left + 0.003, top - (place["h"] - 0.15) / total, width - 0.006, (place["h"] - 0.15) / total)
            )
            box.set(xticks=[], yticks=[], facecolor="white")
            for spine in box.spines.values():
                spine.set_color("#d8d9da")
            figure.text(
                left + 0.008,
                top - 0.75 / total,
                panel["title"].replace("$model", "each model"),
                fontsize=9,
                va="center",
            )
            inner = (
                left + 0.045,
                top - (place["h"] - 1.3) / total,
                width - 0.055,
                (place["h"] - 2.6) / total,
            )
            getattr(self, f"_{panel['type']}")(figure, panel, inner)
        return figure

    def _range(self, target: dict[str, Any], model: str = ".+") -> list[tuple[str, list[float], list[float]]]:
        """Return the series of a query over the time shown: name, seconds and values."""
        data = self._prometheus.get(
            "query_range",
            query=substituted(target["expr"], model),
            start=str(self._end - SHOWN_S),
            end=str(self._end),
            step="1",
        )
        return [
            (
                named(target["legendFormat"], series["metric"]),
                [float(at) - self._end for at, _ in series["values"]],
                [float(value) for _, value in series["values"]],
            )
            for series in data["result"]
        ]

    def _now(self, target: dict[str, Any]) -> list[tuple[dict[str, str], float]]:
        """Return the values of a query at the end of the time shown."""
        data = self._prometheus.get("query", query=substituted(target["expr"]), time=str(self._end))
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]

    def _style(self, name: str) -> str:
        """Return the style of a line: models differ in colour, quantities in style."""
        return STYLES[
            self._quantities.setdefault(name.partition(" · ")[2], len(self._quantities)) % len(STYLES)
        ]

    def _colour(self, name: str) -> str:
        name = name.partition(" · ")[0]
        return self._colours.setdefault(name, COLOURS[len(self._colours) % len(COLOURS)])

    def _timeseries(
        self, figure: Figure, panel: dict[str, Any], place: tuple[float, float, float, float]
    ) -> None:
        defaults = panel["fieldConfig"]["defaults"]
        x, y, width, height = place
        share = 0.6 if panel["gridPos"]["w"] > 8 else 0.5
        self._quantities = {}
        axes = figure.add_axes((x, y, width * share, height))
        series = [one for target in panel["targets"] for one in self._range(target)]
        series.sort(key=lambda one: -one[2][-1])
        for name, seconds, values in series:
            axes.plot(seconds, values, color=self._colour(name), linestyle=self._style(name), linewidth=1.2)
        plain(axes, defaults["unit"])
        axes.set_ylim(bottom=max(axes.get_ylim()[0], defaults.get("min", axes.get_ylim()[0])))
        positive = [value for _, _, values in series for value in values if value > 0]
        if defaults["custom"]["scaleDistribution"]["type"] == "log" and positive:
            axes.set_yscale("log")
            axes.set_ylim(0.8 * min(positive), 1.25 * max(positive))  # the limits above may be 0
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: readable(value, defaults["unit"])))
            axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
        for line, (name, _, values) in enumerate(series[:LINES]):
            at = y + height - (line + 0.5) * height / max(8, min(LINES, len(series)))
            figure.text(
                x + width * (share + 0.03),
                at,
                MARKS[STYLES.index(self._style(name))],
                color=self._colour(name),
                fontsize=6,
                va="center",
            )
            figure.text(x + width * (share + 0.05), at, shortened(name), fontsize=6.2, va="center")
            figure.text(
                x + width, at, readable(values[-1], defaults["unit"]), fontsize=6.2, va="center", ha="right"
            )

    def _stat(self, figure: Figure, panel: dict[str, Any], place: tuple[float, float, float, float]) -> None:
        defaults = panel["fieldConfig"]["defaults"]
        (target,) = panel["targets"]
        found = sorted((named(target["legendFormat"], labels), value) for labels, value in self._now(target))
        x, y, width, height = place
        x, width = x - 0.035, width + 0.035
        for index, (name, value) in enumerate(found):
            middle = x + (index + 0.5) * width / len(found)
            size = 17 if len(found) < 3 else 9
            text = readable(value, defaults["unit"], defaults["decimals"])
            figure.text(
                middle,
                y + height * 0.6,
                text,
                fontsize=size,
                ha="center",
                va="center",
                color=self._colour(name),
            )
            figure.text(
                middle,
                y + height * 0.05,
                name,
                fontsize=6.2,
                ha="center",
                va="center",
                rotation=0 if len(found) < 5 else 12,
            )

    def _heatmap(
        self, figure: Figure, panel: dict[str, Any], place: tuple[float, float, float, float]
    ) -> None:
        x, y, width, height = place
        (target,) = panel["targets"]
        for index, model in enumerate(self._models):
            part = width / len(self._models)
            axes = figure.add_axes((x + index * part, y, part * 0.93, height * 0.92))
            found = {
                float(name): dict(zip(seconds, values, strict=True))
                for name, seconds, values in self._range(target, model)
            }
            bounds = [bound for bound in sorted(found) if bound < 1]
            times = sorted({at for values in found.values() for at in values})
            cells = [
                [max(0.0, found[upper].get(at, 0) - found[lower].get(at, 0)) for at in times]
                for lower, upper in pairwise(bounds)
            ]
            axes.pcolormesh(
                times, bounds, [row[1:] for row in cells], cmap="Blues", norm=LogNorm(0.1, RATE * 2)
            )
            axes.set_yscale("log")
            plain(axes, "s")
            axes.set_title(model, fontsize=7, pad=2)
            if index:
                axes.set_yticklabels([])
                axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
            else:
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: readable(value, "s")))
                axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))

    def _table(self, figure: Figure, panel: dict[str, Any], place: tuple[float, float, float, float]) -> None:
        overrides = {
            one["matcher"]["options"]: {field["id"]: field["value"] for field in one["properties"]}
            for one in panel["fieldConfig"]["overrides"]
        }
        organised = panel["transformations"][1]["options"]
        rows: dict[str, dict[str, str]] = {}
        for target in panel["targets"]:
            for labels, value in self._now(target):
                row = rows.setdefault(labels.get("model", labels.get("instance", "")), {})
                row |= labels
                column = organised["renameByName"].get(f"Value #{target['refId']}")
                if column:
                    form = overrides[column]
                    row[column] = readable(
                        value, form["unit"], form["decimals"] if form["unit"] != "short" else None
                    )
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        x, y, width, height = place
        for number, row in enumerate([dict(zip(columns, columns, strict=True)), *rows.values()]):
            for index, column in enumerate(columns):
                figure.text(
                    x - 0.03 + index * (width + 0.03) / len(columns),
                    y + height * (1 - number / 8),
                    row.get(column, ""),
                    fontsize=7,
                    va="center",
                    weight="normal" if number else "bold",
                )


def shortened(name: str) -> str:
    """Return the beginning of a long name."""
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"


def named(legend: str, labels: dict[str, str]) -> str:
    """Return the name of a series."""
    for label, value in labels.items():
        legend = legend.replace(f"{{{{{label}}}}}", value)
    return legend.replace("{{model}}", "").replace("{{severity}}", "").strip()


def plain(axes: Axes, unit: str) -> None:
    """Set ticks and grid as in a small panel."""
    axes.set_xlim(-SHOWN_S, 0)
    axes.tick_params(labelsize=6, length=2)
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: readable(value, unit)))
    for spine in axes.spines.values():
        spine.set_visible(False)


def send(url: str, model: str, until: float) -> None:
    """Send requests at random times: one digit, sometimes eight, and sometimes an invalid one."""
    chance = random.Random(model)  # noqa: S311 - a load
    digits = sample_test().images.tolist()
    with httpx.Client(base_url=url, timeout=30) as client:
        while time.monotonic() < until:
            first = chance.randrange(len(digits) - 8)
            images: Any = (
                {"image": digits[first]} if chance.random() < 0.9 else {"images": digits[first : first + 8]}
            )
            client.post(f"/predict/{model}", json={"image": [1]} if chance.random() < 0.02 else images)
            time.sleep(chance.expovariate(RATE))


def burst(url: str) -> None:
    """Send all of many requests but their last bytes, which is more than the service admits, then the rest."""
    digits = sample_test().images.tolist()
    requests = [
        post("/predict/teacher", json.dumps({"image": one}).encode()) for one in digits[: 4 * MAX_IN_FLIGHT]
    ]
    connections = [connect(url) for _ in requests]
    for connection, request in zip(connections, requests, strict=True):
        connection.sendall(request[:-1])
    time.sleep(0.5)
    for connection, request in zip(connections, requests, strict=True):
        with closing(connection), suppress(OSError):  # closed by the service, which has rejected it
            connection.sendall(request[-1:])
            connection.recv(65536)


def save(name: str, figure: Figure) -> None:
    """Write a figure with a palette, so that the file is small."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    image = Image.open(buffer).convert("RGB")
    image.quantize(64, dither=Image.Dither.NONE).save(HERE / f"{name}.png", optimize=True)


def save_top(url: str) -> None:
    """Write the screen of `distillery-bench top` during the load."""
    history: dict[str, list[float]] = {}
    console = Console(record=True, width=168, file=io.StringIO())
    with closing(Service(url)) as service:
        before = service.scrape()
        for _ in range(20):
            time.sleep(2)
            after = service.scrape()
            state, before = state_of(Growth(before, after)), after
            for model, values in state.models.items():
                history.setdefault(model, []).append(values.images_per_s)
    console.print(screen("http://127.0.0.1:8000", state, history))
    console.save_svg(str(HERE / "top.svg"), title="distillery-bench top")


def main() -> None:
    """Run service, Prometheus and load, and write the figures."""
    models_dir = Path(sys.argv[1] if len(sys.argv) > 1 else "models")
    flags = ("--max-in-flight", str(MAX_IN_FLIGHT))
    with (
        TemporaryDirectory() as folder,
        running_service(models_dir, *flags) as service,
        running_prometheus([service.url], Path(folder), faster=FASTER) as prometheus,
    ):
        models = [one["name"] for one in httpx.get(f"{service.url}/models").json()["models"]]
        until = time.monotonic() + SECONDS
        threads = [threading.Thread(target=send, args=(service.url, model, until)) for model in models]
        for thread in threads:
            thread.start()
        time.sleep(20)
        save_top(service.url)
        time.sleep(max(0, until - time.monotonic() - SECONDS + BURST_AFTER_S))
        for _ in range(BURSTS):
            burst(service.url)
        time.sleep(max(0, until - time.monotonic() - 1))
        end = time.time()
        for thread in threads:
            thread.join()
        for name in ("distillation", "service"):
            dashboard = json.loads((DOCKER / f"grafana/dashboards/{name}.json").read_text())
            save(name, Drawing(prometheus, dashboard, models, end).draw())


if __name__ == "__main__":
    main()
