"""Write the Grafana dashboard: teacher and students side by side.

    python docker/grafana/dashboard.py            writes dashboards/distillery.json
    python docker/grafana/dashboard.py --check    fails when that file is not what this one says

A dashboard's JSON repeats everything for every panel, so it is written from two lists of panels, and never by hand:
comparison.py says what sets the models apart, `traffic` what the service has to do; panels.py draws them.
Every expression is asked of a real Prometheus by tests/monitoring/test_live.py, and the JSON is checked against
Grafana's own types by tests/monitoring/test_dashboard.py.
"""

import json
import sys
from pathlib import Path

from comparison import comparison, models_table
from panels import MODELS, PROMETHEUS, QUANTILES, Json, arrange, graph, query

FILE = Path(__file__).parent / "dashboards" / "distillery.json"


def traffic() -> list[Json]:
    """What is asked of the service, and how it copes."""
    return [
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
    ]


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
        "panels": arrange([*comparison(), *traffic(), models_table()]),
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
