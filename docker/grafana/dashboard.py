"""Write the Grafana dashboard: teacher and students side by side.

    python docker/grafana/dashboard.py            writes dashboards/distillery.json
    python docker/grafana/dashboard.py --check    fails when that file is not what this one says

A dashboard's JSON repeats everything for every panel, so it is written from this list of panels, and never by hand.
Every expression is asked of a real Prometheus by tests/test_monitoring_live.py, and the JSON is checked against
Grafana's own types by tests/test_monitoring_dashboard.py.
"""

import json
import sys
from pathlib import Path
from typing import Any

Json = dict[str, Any]

FILE = Path(__file__).parent / "dashboards" / "distillery.json"
PROMETHEUS = {"type": "prometheus", "uid": "prometheus"}
STUDENTS = 'model=~"$model", model!="teacher"'
MODELS = 'model=~"$model"'
QUANTILES = {"p50": "0.5", "p90": "0.9", "p99": "0.99"}


def query(expr: str, legend: str = "{{model}}", *, table: bool = False, now: bool = False) -> Json:
    """One expression; `now` asks for its present value only, `table` for rows instead of a series."""
    return {
        "datasource": PROMETHEUS,
        "expr": expr,
        "legendFormat": legend,
        "instant": table or now,
        "range": not (table or now),
        "format": "table" if table else "time_series",
    }


def panel(
    kind: str, title: str, queries: list[Json], *, width: int, height: int, about: str, unit: str = "short"
) -> Json:
    """What every panel has; `width` and `height` are in units of Grafana's 24-column grid."""
    return {
        "type": kind,
        "title": title,
        "description": about,
        "datasource": PROMETHEUS,
        "gridPos": {"w": width, "h": height, "x": 0, "y": 0},  # `arrange` puts it in its place
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
    """Lines over time, with the last value beside each name. `log`: the models lie a factor of ten apart."""
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
    """One large number for each student."""
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


def models_table() -> Json:
    """What each model is: a row per model, its facts merged from four metrics by the labels they share."""
    facts = {
        "distillery_model_test_accuracy_ratio": ("Test accuracy", "percentunit", 2),
        "distillery_model_parameters": ("Parameters", "short", 2),
        "distillery_model_size_bytes": ("File size", "decbytes", 2),
    }
    queries = [query(f"max by (model) ({metric})", table=True) for metric in facts]
    info = "max by (model, version, precision, architecture) (distillery_model_info)"
    made = panel(
        "table",
        "Models in the repository",
        [*queries, query(info, table=True)],
        width=24,
        height=6,
        about="From each model's manifest. Test accuracy is that of the exported file on the 10,000 test digits.",
    )
    columns = {f"Value #{chr(ord('A') + i)}": fact for i, fact in enumerate(facts.values())}
    made["fieldConfig"]["overrides"] = [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "unit", "value": unit}, {"id": "decimals", "value": decimals}],
        }
        for name, unit, decimals in columns.values()
    ]
    made["options"] = {"showHeader": True, "cellHeight": "sm"}
    made["transformations"] = [
        {"id": "merge", "options": {}},
        {
            "id": "organize",
            "options": {
                "excludeByName": {"Time": True, "Value #D": True},
                "indexByName": {"model": 0, "version": 1, "precision": 2, "architecture": 3},
                "renameByName": {column: name for column, (name, _, _) in columns.items()},
            },
        },
    ]
    return made


def side_by_side() -> Json:
    """The same panel once for every chosen model, next to each other."""
    queries = [
        query(
            f'model:distillery_request_duration_seconds:quantile1m{{model="$model", quantile="{value}"}}',
            name,
        )
        for name, value in QUANTILES.items()
    ]
    about = (
        "From the body's arrival to the answer's hand-over, without the network, interpolated in a histogram."
    )
    made = graph("Answer time · $model", queries, unit="s", about=about, width=24, log=True)
    return {**made, "repeat": "model", "repeatDirection": "h", "maxPerRow": 4}


def panels() -> list[Json]:
    """The dashboard from top to bottom; `arrange` fills rows from left to right."""
    speedup = "model:distillery_speedup_over_teacher:ratio"
    answer = "model:distillery_request_duration_seconds:quantile1m"
    needs_both = (
        " Needs traffic on the teacher and the model within the same minute, of the same kind to be fair."
    )
    return [
        tile(
            "Speedup: inference per image",
            f'{speedup}{{{STUDENTS}, measure="inference per image"}}',
            unit="suffix:×",
            decimals=1,
            about="The teacher's inference seconds per image divided by the model's." + needs_both,
        ),
        tile(
            "Speedup: median answer",
            f'{speedup}{{{STUDENTS}, measure="answer p50"}}',
            unit="suffix:×",
            decimals=1,
            about="The teacher's median answer time divided by the model's: what a client sees of the speedup."
            + needs_both,
        ),
        tile(
            "Accuracy against the teacher",
            f"max by (model) (distillery_model_test_accuracy_ratio{{{STUDENTS}}})"
            ' - scalar(max(distillery_model_test_accuracy_ratio{model="teacher"}))',
            unit="percentunit",
            decimals=2,
            about="Percentage points on the 10,000 test digits; below zero is what the speedup costs.",
        ),
        tile(
            "Times smaller than the teacher",
            'scalar(max(distillery_model_size_bytes{model="teacher"}))'
            f" / max by (model) (distillery_model_size_bytes{{{STUDENTS}}})",
            unit="suffix:×",
            decimals=1,
            about="The teacher's file size divided by the model's.",
        ),
        side_by_side(),
        graph(
            "Speedup over the teacher",
            [query(f"{speedup}{{{STUDENTS}}}", "{{model}} · {{measure}}")],
            unit="suffix:×",
            log=True,
            about="Inference per image is the model's own gain, answer p50 and p99 what is left of it around it."
            + needs_both,
        ),
        graph(
            "Inference time per image",
            [query(f"model:distillery_inference_seconds_per_image:mean1m{{{MODELS}}}")],
            unit="s",
            log=True,
            about="Seconds inside session.run divided by images; it falls as batches grow.",
        ),
        graph(
            "Median answer time",
            [query(f'{answer}{{{MODELS}, quantile="0.5"}}')],
            unit="s",
            log=True,
            about="Half of the answers were faster.",
        ),
        graph(
            "99th percentile of the answer time",
            [query(f'{answer}{{{MODELS}, quantile="0.99"}}')],
            unit="s",
            log=True,
            about="One answer in a hundred was slower.",
        ),
        graph(
            "Where a request's time goes",
            [
                query(
                    f"sum by (model, stage) (rate(distillery_request_stage_seconds_total{{{MODELS}}}[1m]))"
                    " / on (model) group_left ()"
                    f" (sum by (model) (rate(distillery_queue_wait_seconds_count{{{MODELS}}}[1m])) > 0)",
                    "{{model}} · {{stage}}",
                )
            ],
            unit="s",
            width=24,
            log=True,
            about="Means of answered requests: decode the body, queue for a run, inference (the whole run that the "
            "request was part of), delivery (its turn once the run has finished), encode the answer.",
        ),
        graph(
            "Throughput: images",
            [query(f"model:distillery_images:rate1m{{{MODELS}}}")],
            unit="ops",
            about="Images classified per second.",
        ),
        graph(
            "Throughput: requests",
            [query(f"model:distillery_requests:rate1m{{{MODELS}}}")],
            unit="reqps",
            about="Requests answered per second, with whatever status.",
        ),
        graph(
            "Queue wait",
            [
                query(
                    f'model:distillery_queue_wait_seconds:quantile1m{{{MODELS}, quantile="{value}"}}',
                    f"{{{{model}}}} · {name}",
                )
                for name, value in QUANTILES.items()
                if name != "p90"
            ],
            unit="s",
            log=True,
            about="From a request being ready to its batch being started.",
        ),
        graph(
            "Batch size",
            [query(f"model:distillery_batch_size_images:mean1m{{{MODELS}}}")],
            unit="none",
            about="Images per session.run, mean over a minute: a batch is whatever had arrived.",
        ),
        graph(
            "Answers by status",
            [query("status:distillery_requests:rate1m", "{{status}}")],
            unit="reqps",
            about="4xx: the client's mistake, also for models that do not exist. 503: overloaded. 504: too late.",
        ),
        graph(
            "Errors, as a share of the answers",
            [
                query(f"model:distillery_server_errors:ratio_rate1m{{{MODELS}}}", "{{model}} · server (5xx)"),
                query(f"model:distillery_client_errors:ratio_rate1m{{{MODELS}}}", "{{model}} · client (4xx)"),
            ],
            unit="percentunit",
            about="Server errors above one percent for five minutes raise an alert.",
        ),
        graph(
            "Inference time per batch",
            [
                query(
                    f'model:distillery_inference_duration_seconds:quantile1m{{{MODELS}, quantile="{value}"}}',
                    f"{{{{model}}}} · {name}",
                )
                for name, value in QUANTILES.items()
                if name != "p90"
            ],
            unit="s",
            width=8,
            log=True,
            about="Seconds inside one session.run, whatever the size of its batch.",
        ),
        graph(
            "Requests in flight",
            [query(f"sum by (model) (distillery_requests_in_flight{{{MODELS}}})")],
            unit="none",
            width=8,
            about="Requests taken and not yet answered, over all API processes.",
        ),
        graph(
            "Predictions by digit",
            [
                query(
                    f"sum by (digit) (rate(distillery_predictions_total{{{MODELS}}}[1m]))"
                    f" / scalar(sum(rate(distillery_predictions_total{{{MODELS}}}[1m])))",
                    "{{digit}}",
                )
            ],
            unit="percentunit",
            width=8,
            about="Share of each digit in the answers of the chosen models. MNIST's digits lie between 9 and 11 %.",
        ),
        models_table(),
    ]


def arrange(made: list[Json]) -> list[Json]:
    """Give every panel its id and its place, left to right, a new row when 24 columns are full."""
    x = y = row_height = 0
    for number, one in enumerate(made, start=1):
        place = one["gridPos"]
        if x + place["w"] > 24:
            x, y, row_height = 0, y + row_height, 0
        one["id"], place["x"], place["y"] = number, x, y
        x, row_height = x + place["w"], max(row_height, place["h"])
    return made


def dashboard() -> Json:
    """The whole document, as Grafana provisions it."""
    return {
        "uid": "distillery",
        "title": "Distillery: teacher and students side by side",
        "description": "What is gained, and what is lost, when a distilled model replaces the big one.",
        "tags": ["distillery"],
        "editable": False,
        "schemaVersion": 42,
        "graphTooltip": 1,  # one cross-hair through all panels
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "model",
                    "label": "Model",
                    "type": "query",
                    "datasource": PROMETHEUS,
                    "query": {"query": "label_values(distillery_model_info, model)", "refId": "model"},
                    "refresh": 2,  # when the time range changes: a model may be new
                    "sort": 1,
                    "multi": True,
                    "includeAll": True,
                    "current": {
                        "text": ["teacher", "student-int8"],
                        "value": ["teacher", "student-int8"],
                        "selected": True,
                    },
                }
            ]
        },
        "panels": arrange(panels()),
    }


def main() -> int:
    """Write the file, or with --check say whether it is up to date."""
    text = json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"
    if "--check" not in sys.argv[1:]:
        FILE.write_text(text, encoding="utf-8")
        return 0
    if FILE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{FILE} is not what {__file__} says; run python {__file__}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
