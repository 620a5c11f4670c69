"""Write the Grafana dashboard that compares teacher and students.

    python docker/grafana/dashboard.py            writes dashboards/distillery.json
    python docker/grafana/dashboard.py --check    fails if that file is out of date

A dashboard's JSON repeats all options for every panel, so it is generated from two lists of panels: comparison.py
compares the models, `traffic` shows the load on the service; panels.py has the kinds of panels.
tests/monitoring/test_live.py evaluates every expression in a real Prometheus, tests/monitoring/test_dashboard.py checks
the JSON against Grafana's types.
"""

import json
import sys
from pathlib import Path

from comparison import comparison, models_table
from panels import MODELS, PROMETHEUS, QUANTILES, Json, arrange, graph, query, rate

FILE = Path(__file__).parent / "dashboards" / "distillery.json"


def traffic() -> list[Json]:
    """Panels of requests, queues, errors and predictions."""
    return [
        graph(
            "Request time by stage",
            [
                query(
                    f"sum by (model, stage) ({rate('distillery_request_stage_seconds_total')})"
                    " / on (model) group_left ()"
                    f" (sum by (model) ({rate('distillery_queue_wait_seconds_count')}) > 0)",
                    "{{model}} · {{stage}}",
                )
            ],
            unit="s",
            width=24,
            log=True,
            about="Means of successful requests: decode the body, wait in the queue, inference (the run that includes"
            " the request), delivery (wait for the event loop after the run), encode the response.",
        ),
        graph(
            "Throughput: images",
            [query(f"model:distillery_images:rate5m{{{MODELS}}}")],
            unit="ops",
            about="Images classified per second.",
        ),
        graph(
            "Throughput: requests",
            [query(f"model:distillery_requests:rate5m{{{MODELS}}}")],
            unit="reqps",
            about="Requests completed per second, with any status.",
        ),
        graph(
            "Queue wait",
            [
                query(
                    f'model:distillery_queue_wait_seconds:quantile5m{{{MODELS}, quantile="{value}"}}',
                    f"{{{{model}}}} · {name}",
                )
                for name, value in QUANTILES.items()
                if name != "p90"
            ],
            unit="s",
            log=True,
            about="Time from a request decoded to the start of its batch.",
        ),
        graph(
            "Batch size",
            [query(f"model:distillery_batch_size_images:mean5m{{{MODELS}}}")],
            unit="none",
            about="Images per session.run, mean over five minutes; a batch is whatever has arrived when a run starts.",
        ),
        graph(
            "Responses by status",
            [query("status:distillery_requests:rate5m > 0", "{{status}}")],
            unit="reqps",
            about="4xx: client errors, including unknown models. 503: overloaded. 504: time limit exceeded.",
        ),
        graph(
            "Errors, as a share of all responses",
            [
                query(f"model:distillery_server_errors:ratio_rate5m{{{MODELS}}}", "{{model}} · server (5xx)"),
                query(f"model:distillery_client_errors:ratio_rate5m{{{MODELS}}}", "{{model}} · client (4xx)"),
            ],
            unit="percentunit",
            about="Server errors above one percent for five minutes raise an alert.",
        ),
        graph(
            "Rejected predictions, as a share of all images",
            [query(f"model:distillery_rejected_predictions:ratio_rate5m{{{MODELS}}}")],
            unit="percentunit",
            about="Images whose prediction is not accepted: no digit, or an unclear one. More than half of them for 15"
            " minutes raise an alert.",
        ),
        graph(
            "Inference time per batch",
            [
                query(
                    f'model:distillery_inference_duration_seconds:quantile5m{{{MODELS}, quantile="{value}"}}',
                    f"{{{{model}}}} · {name}",
                )
                for name, value in QUANTILES.items()
                if name != "p90"
            ],
            unit="s",
            log=True,
            about="Seconds inside one session.run, for batches of any size.",
        ),
        graph(
            "Requests in flight",
            [query(f"sum by (model) (distillery_requests_in_flight{{{MODELS}}})")],
            unit="none",
            about="Requests received and not yet answered, over all API processes.",
        ),
        graph(
            "Predictions by digit",
            [
                query(
                    f"sum by (digit) ({rate('distillery_predictions_total')})"
                    f" / scalar(sum({rate('distillery_predictions_total')}))",
                    "{{digit}}",
                )
            ],
            unit="percentunit",
            about="Share of each digit in the predictions of the selected models. In MNIST each digit has 9 to 11 %.",
        ),
        graph(
            "CPU time per image",
            [
                query(
                    "sum(rate(distillery_process_cpu_seconds_total[$__rate_interval]))"
                    " / (sum(rate(distillery_images_total[$__rate_interval])) > 0)",
                    "all models",
                )
            ],
            unit="s",
            about="CPU time of all processes of the service, divided by the images classified.",
        ),
        graph(
            "Process restarts",
            [
                query(
                    "sum by (process) (increase(distillery_process_restarts_total[$__rate_interval]))",
                    "{{process}}",
                )
            ],
            unit="none",
            about="Processes that died or did not respond, and were replaced. Three within 15 minutes raise an alert.",
        ),
    ]


def dashboard() -> Json:
    """Return the dashboard as Grafana provisions it."""
    return {
        "uid": "distillery",
        "title": "Distillery: teacher and students",
        "description": "Speed, size and accuracy of students against their teacher, and the load on the service.",
        "tags": ["distillery"],
        "editable": False,
        "schemaVersion": 42,
        "graphTooltip": 1,  # one crosshair shared by all panels
        "refresh": "15s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "model",
                    "label": "Model",
                    "type": "query",
                    "datasource": PROMETHEUS,
                    "query": {"query": "label_values(distillery_model_info, model)", "refId": "model"},
                    "refresh": 2,  # on every change of the time range: models may have been added
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
    """Write the file; with --check, return 1 if it is out of date."""
    text = json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"
    if "--check" not in sys.argv[1:]:
        FILE.write_text(text, encoding="utf-8")
        return 0
    if FILE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{FILE} is out of date; run python {__file__}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
