"""The kinds of panels in the dashboard, as Grafana's JSON."""

from typing import Any

Json = dict[str, Any]

PROMETHEUS = {"type": "prometheus", "uid": "prometheus"}
MODELS = 'model=~"$model"'
QUANTILES = {"p50": "0.5", "p90": "0.9", "p99": "0.99"}


def query(expr: str, legend: str = "{{model}}", *, table: bool = False, now: bool = False) -> Json:
    """Return a query; `now` selects the present value only, `table` rows instead of a time series."""
    return {
        "datasource": PROMETHEUS,
        "expr": expr,
        "legendFormat": legend,
        "instant": table or now,
        "range": not (table or now),
        "format": "table" if table else "time_series",
    }


def rate(metric: str) -> str:
    """Return the rate of a counter for the selected models; Grafana derives the window from the scrape interval."""
    return f"rate({metric}{{{MODELS}}}[$__rate_interval])"


def panel(
    kind: str, title: str, queries: list[Json], *, width: int, height: int, about: str, unit: str = "short"
) -> Json:
    """Return the options common to all panels; `width` and `height` are in units of Grafana's 24-column grid."""
    return {
        "type": kind,
        "title": title,
        "description": about,
        "datasource": PROMETHEUS,
        "gridPos": {"w": width, "h": height, "x": 0, "y": 0},  # `arrange` sets the position
        "targets": [{**q, "refId": chr(ord("A") + i)} for i, q in enumerate(queries)],
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "color": {"mode": "palette-classic-by-name"},  # a model keeps its colour in every panel
            },
            "overrides": [],
        },
        "options": {},
    }


def graph(
    title: str, queries: list[Json], *, unit: str, about: str, width: int = 12, log: bool = False
) -> Json:
    """Return lines over time, with the last value next to each name; `log` for models a factor of ten apart."""
    made = panel("timeseries", title, queries, width=width, height=8, about=about, unit=unit)
    made["fieldConfig"]["defaults"]["custom"] = {
        "lineWidth": 2,
        "fillOpacity": 0 if log else 8,
        "scaleDistribution": {"type": "log", "log": 10} if log else {"type": "linear"},
    }
    if not log:
        made["fieldConfig"]["defaults"]["min"] = 0
    made["options"] = {
        "legend": {
            "displayMode": "table",
            "placement": "bottom",
            "showLegend": True,
            "calcs": ["lastNotNull", "mean"],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return made


def tile(title: str, expr: str, *, unit: str, about: str, decimals: int) -> Json:
    """Return a panel with one large number per student."""
    made = panel("stat", title, [query(expr, now=True)], width=6, height=5, about=about, unit=unit)
    made["fieldConfig"]["defaults"]["decimals"] = decimals
    made["options"] = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "value_and_name",
        "wideLayout": True,
        "showPercentChange": False,
        "percentChangeColorMode": "standard",
    }
    return made


def arrange(made: list[Json]) -> list[Json]:
    """Set the id and position of every panel: left to right, in rows of 24 columns."""
    x = y = row_height = 0
    for number, one in enumerate(made, start=1):
        place = one["gridPos"]
        if x + place["w"] > 24:
            x, y, row_height = 0, y + row_height, 0
        one["id"], place["x"], place["y"] = number, x, y
        x, row_height = x + place["w"], max(row_height, place["h"])
    return made
