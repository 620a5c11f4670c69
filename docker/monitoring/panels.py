"""The kinds of panels and variables in the dashboards, as Grafana's JSON."""

import re
from pathlib import Path
from typing import Any

Json = dict[str, Any]

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
RELEASES = {
    "name": "Releases",
    "datasource": DATASOURCE,
    "enable": True,
    "iconColor": "purple",
    "expr": 'sum by (decision, by) (increase(distillery_release_decisions_total{job=~"$job"}[$__rate_interval])) > 0',
    "titleFormat": "{{decision}} of a candidate by {{by}}",
}
"""Annotation of the decisions on candidates."""
RUNBOOKS_UID = "distillery-runbooks"
_OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def query(
    expr: str,
    legend: str = "{{model}}",
    *,
    form: str = "time_series",
    now: bool = False,
    exemplars: bool = False,
) -> Json:
    """Return a query; `now` selects the present value only, `form` is `time_series`, `table` or `heatmap`.

    `exemplars`: traces of single requests are shown as well.
    """
    return {
        "datasource": DATASOURCE,
        "expr": expr,
        "legendFormat": legend,
        "instant": now,
        "range": not now,
        "format": form,
        "exemplar": exemplars,
    }


def panel(
    kind: str,
    title: str,
    queries: list[Json],
    *,
    about: str,
    unit: str,
    width: int,
    height: int = 8,
    runbook: str = "",
) -> Json:
    """Return the options common to all panels; `width` and `height` are in units of Grafana's 24-column grid.

    `runbook` is the name of an alert.
    """
    made: Json = {
        "type": kind,
        "title": title,
        "description": about,
        "datasource": DATASOURCE,
        "gridPos": {"w": width, "h": height, "x": 0, "y": 0},  # `arrange` sets the position
        "targets": [{**one, "refId": chr(ord("A") + index)} for index, one in enumerate(queries)],
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "color": {"mode": "palette-classic-by-name"},  # a model keeps its colour in every panel
            },
            "overrides": [],
        },
        "options": {},
    }
    if runbook:
        url = f"/d/{RUNBOOKS_UID}?viewPanel=panel-{list(runbooks()).index(runbook) + 1}"
        made["links"] = [link(f"Runbook: {runbook}", "link", url)]
    return made


def graph(
    title: str,
    queries: list[Json],
    *,
    about: str,
    unit: str,
    width: int = 12,
    log: bool = False,
    lowest: float | None = None,
    runbook: str = "",
) -> Json:
    """Return lines over time, with the last value next to each name; `log` for models a factor of ten apart.

    `lowest` is the lower end of the axis, by default that of the data.
    """
    made = panel("timeseries", title, queries, about=about, unit=unit, width=width, runbook=runbook)
    made["fieldConfig"]["defaults"]["custom"] = {
        "lineWidth": 2,
        "fillOpacity": 0 if log else 8,
        "scaleDistribution": {"type": "log", "log": 10} if log else {"type": "linear"},
    }
    if lowest is not None:
        made["fieldConfig"]["defaults"]["min"] = lowest
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


def tile(
    title: str,
    expr: str,
    *,
    about: str,
    unit: str,
    decimals: int = 0,
    legend: str = "{{model}}",
    width: int = 6,
    runbook: str = "",
) -> Json:
    """Return a panel with one large number per series."""
    made = panel(
        "stat",
        title,
        [query(expr, legend, now=True)],
        about=about,
        unit=unit,
        width=width,
        height=5,
        runbook=runbook,
    )
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


def heatmap(title: str, expr: str, *, about: str, unit: str, width: int) -> Json:
    """Return the distribution of a histogram over time."""
    made = panel(
        "heatmap", title, [query(expr, "{{le}}", form="heatmap")], about=about, unit=unit, width=width
    )
    made["options"] = {
        "calculate": False,
        "color": {
            "mode": "scheme",
            "scheme": "Blues",
            "exponent": 0.5,
            "fill": "blue",
            "reverse": False,
            "steps": 64,
        },
        "exemplars": {"color": "orange"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "showValue": "never",
        "tooltip": {"mode": "single", "yHistogram": True},
        "yAxis": {"unit": unit},
    }
    return made


def table(
    title: str, queries: list[Json], *, about: str, columns: dict[str, tuple[str, str, int]], width: int
) -> Json:
    """Return a row for each set of labels that the queries have in common.

    `columns`: name, unit and decimals of each query's value, by its letter; queries without a column are labels only.
    """
    made = panel("table", title, queries, about=about, unit="short", width=width)
    made["fieldConfig"]["overrides"] = [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "unit", "value": unit}, {"id": "decimals", "value": decimals}],
        }
        for name, unit, decimals in columns.values()
    ]
    made["options"] = {"showHeader": True, "cellHeight": "sm"}
    letters = [chr(ord("A") + index) for index in range(len(queries))]
    hidden = ["Time", *(f"Value #{letter}" for letter in letters if letter not in columns)]
    if len(queries) == 1:
        hidden.append("Value")
    made["transformations"] = [
        {"id": "merge", "options": {}},
        {
            "id": "organize",
            "options": {
                "excludeByName": dict.fromkeys(hidden, True),
                "indexByName": {},
                "renameByName": {f"Value #{letter}": name for letter, (name, _, _) in columns.items()},
            },
        },
    ]
    return made


def row(title: str) -> Json:
    """Return the headline of the panels that follow."""
    return {
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"w": 24, "h": 1, "x": 0, "y": 0},
        "panels": [],
    }


def text(title: str, content: str, *, width: int, height: int) -> Json:
    """Return a panel with Markdown."""
    return {
        "type": "text",
        "title": title,
        "description": "From docs/operations.md.",
        "gridPos": {"w": width, "h": height, "x": 0, "y": 0},
        "targets": [],
        "fieldConfig": {"defaults": {}, "overrides": []},
        "options": {"mode": "markdown", "content": content},
    }


def runbooks() -> dict[str, str]:
    """Return the runbooks of docs/operations.md, in Markdown, by the name of their alert."""
    chapter = _OPERATIONS.read_text(encoding="utf-8").partition("\n## Runbooks\n")[2].partition("\n## ")[0]
    _, *parts = re.split(r"^### (\w+)$", chapter, flags=re.MULTILINE)
    return {
        name: re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", body).strip()  # its links are relative to the file
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


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


def link(title: str, kind: str, url: str = "") -> Json:
    """Return a link to a page, or to all dashboards of this project."""
    return {
        "title": title,
        "type": kind,
        "tags": [] if url else ["distillery"],
        "asDropdown": False,
        "icon": "doc" if url else "external link",
        "tooltip": "",
        "url": url,
        "includeVars": not url,
        "keepTime": not url,
        "targetBlank": bool(url),
    }


def variable(name: str, label: str, values: str) -> Json:
    """Return a variable with several values, all of them at first, from those of a label in Prometheus."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": values, "refId": name},
        "refresh": 2,  # on every change of the time range: a value may be new
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"text": ["All"], "value": ["$__all"], "selected": True},
    }


def dashboard(uid: str, title: str, about: str, panels: list[Json], variables: list[Json]) -> Json:
    """Return a dashboard as Grafana provisions it."""
    return {
        "uid": uid,
        "title": title,
        "description": about,
        "tags": ["distillery"],
        "links": [link("Distillery", "dashboards")],
        "editable": False,
        "schemaVersion": 42,
        "graphTooltip": 1,  # one crosshair shared by all panels
        "refresh": "15s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": variables},
        "annotations": {"list": [RELEASES] if any(one["name"] == "job" for one in variables) else []},
        "panels": arrange(panels),
    }


def source_variables() -> list[Json]:
    """Return the variables that every dashboard with data has: data source, job, instance and model."""
    info = "distillery_model_info"
    return [
        {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "current": {"text": "Prometheus", "value": "prometheus", "selected": True},
        },
        variable("job", "Job", f"label_values({info}, job)"),
        variable("instance", "Instance", f'label_values({info}{{job=~"$job"}}, instance)'),
        variable("model", "Model", f'label_values({info}{{job=~"$job", instance=~"$instance"}}, model)'),
    ]
