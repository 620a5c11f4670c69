"""The dashboard *Service*: rate, errors and duration, objectives, queues and processes."""

from expressions import DASHBOARD, duration_quantile
from panels import Json, dashboard, graph, query, row, source_variables, table, tile

S = DASHBOARD
RECORDED = 'job=~"$job", model=~"$model"'
FIRING = 'ALERTS{alertname=~"Distillery.*", alertstate="firing", job=~"$job"}'


def overview() -> list[Json]:
    """The state at a glance."""
    requests = S.rate("distillery_requests_total", by=())
    return [
        row("Overview"),
        tile("Requests", requests, unit="reqps", decimals=1, legend="requests", width=4, about="Per second."),
        tile(
            "Server errors",
            S.rate("distillery_requests_total", 'status=~"5.."', by=()) + f" / ({requests} > 0)",
            unit="percentunit",
            decimals=2,
            legend="of all responses",
            width=4,
            runbook="DistilleryAvailability",
            about="Share of responses with a status from 500.",
        ),
        tile(
            "In flight",
            S.gauge("distillery_requests_in_flight", by=()),
            unit="none",
            legend="requests",
            width=4,
            about="Requests received and not answered yet.",
        ),
        tile(
            "Processes",
            S.gauge("distillery_processes", by=()),
            unit="none",
            legend="running",
            width=4,
            runbook="DistilleryProcessesRestart",
            about="API processes and workers.",
        ),
        tile(
            "Firing alerts",
            f"count({FIRING}) or vector(0)",
            unit="none",
            legend="alerts",
            width=4,
            about="Alerts that fire now; the panel Alerts names them.",
        ),
        tile(
            "Uptime",
            f"time() - {S.gauge('distillery_start_time_seconds', by=(), total='max')}",
            unit="s",
            legend="since the last start",
            width=4,
            about="Of the instance that started last.",
        ),
    ]


def objectives() -> list[Json]:
    """Error budgets and how fast they are used."""
    return [
        row("Service level objectives"),
        graph(
            "Error budget left",
            [query(f"slo:distillery_error_budget_left:ratio30d{{{RECORDED}}}", "{{model}} · {{slo}}")],
            unit="percentunit",
            lowest=-1,
            runbook="DistilleryAvailability",
            about="Of the last 30 days; negative: the objective is missed. Evaluated every two minutes.",
        ),
        graph(
            "Burn rate",
            [query(f"slo:distillery_burn:ratio_rate1h{{{RECORDED}}}", "{{model}} · {{slo}}")],
            unit="none",
            runbook="DistilleryLatency",
            about="Of the last hour: at 1, the budget of 30 days lasts 30 days; at 14.4, two, and an alert fires.",
        ),
    ]


def requests() -> list[Json]:
    """Rate, errors and duration."""
    return [
        row("Rate, errors, duration"),
        graph(
            "Predictions by protocol and model",
            [
                query(
                    S.rate("distillery_requests_total", S.models, by=("protocol", "model")),
                    "{{model}} · {{protocol}}",
                )
            ],
            unit="reqps",
            about="Protocols are rest (/predict and /read), v2 and grpc.",
        ),
        graph(
            "Responses by status",
            [query(f"{S.rate('distillery_requests_total', by=('status',))} > 0", "{{status}}")],
            unit="reqps",
            runbook="DistilleryAvailability",
            about="4xx: client errors, including unknown models. 499: the client hung up. 503: overloaded. 504: time"
            " limit exceeded.",
        ),
        graph(
            "Errors by reason",
            [query(f"{S.rate('distillery_rejected_requests_total', by=('reason',))} > 0", "{{reason}}")],
            unit="reqps",
            runbook="DistilleryAvailability",
            about="Requests that ended without a prediction, by the code of the error.",
        ),
        graph(
            "Error share by protocol and model",
            [
                query(
                    f"{S.rate('distillery_requests_total', S.models, status, by=('protocol', 'model'))}"
                    f" / ({S.rate('distillery_requests_total', S.models, by=('protocol', 'model'))} > 0)",
                    f"{{{{model}}}} · {{{{protocol}}}} · {name}",
                )
                for name, status in (("server (5xx)", 'status=~"5.."'), ("client (4xx)", 'status=~"4.."'))
            ],
            unit="percentunit",
            runbook="DistilleryAvailability",
            about="Of the responses of each protocol and model.",
        ),
        graph(
            "Duration",
            [
                query(duration_quantile(S, 0.5, S.models), "{{model}} · p50"),
                query(duration_quantile(S, 0.99, S.models), "{{model}} · p99", exemplars=True),
            ],
            unit="s",
            log=True,
            runbook="DistilleryLatency",
            about="From the body received to the response handed over, whatever the protocol. Dots are requests with a"
            " trace, if the service has --tracing.",
        ),
        graph(
            "Request time by stage",
            [
                query(
                    f"{S.rate('distillery_request_stage_seconds_total', S.models, by=('model', 'stage'))}"
                    " / on (model) group_left ()"
                    f" ({S.rate('distillery_queue_wait_seconds_count', S.models)} > 0)",
                    "{{model}} · {{stage}}",
                )
            ],
            unit="s",
            log=True,
            runbook="DistilleryLatency",
            about="Means of successful requests: decode the body, wait in the queue, inference (the run that includes"
            " the request), delivery (wait for the event loop after the run), encode the response.",
        ),
    ]


def routes() -> list[Json]:
    """Rate, errors and duration of every route, predictions included."""
    rate = S.rate("distillery_route_requests_total", by=("route",))
    durations = "distillery_route_request_duration_seconds"
    buckets = S.rate(f"{durations}_bucket", by=("route", "le"))
    return [
        row("Routes"),
        graph(
            "Requests by route",
            [query(f"{rate} > 0", "{{route}}")],
            unit="reqps",
            width=8,
            about="Of all routes, by the template of their path; unknown: paths that are none.",
        ),
        graph(
            "Error share by route",
            [
                query(
                    f"{S.rate('distillery_route_requests_total', status, by=('route',))} / ({rate} > 0)",
                    f"{{{{route}}}} · {name}",
                )
                for name, status in (("server (5xx)", 'status="5xx"'), ("client (4xx)", 'status="4xx"'))
            ],
            unit="percentunit",
            width=8,
            runbook="DistilleryAvailability",
            about="Of the responses of each route.",
        ),
        graph(
            "Duration by route",
            [
                query(
                    f"{S.rate(f'{durations}_sum', by=('route',))}"
                    f" / ({S.rate(f'{durations}_count', by=('route',))} > 0)",
                    "{{route}} · mean",
                ),
                query(f"histogram_quantile(0.99, {buckets}) >= 0", "{{route}} · p99"),
            ],
            unit="s",
            width=8,
            log=True,
            runbook="DistilleryLatency",
            about="Of predictions, from the body received to the response handed over; of other routes, from the head.",
        ),
    ]


def queues() -> list[Json]:
    """Queues, batches and limits."""
    return [
        row("Queue and batches"),
        graph(
            "Queue wait",
            [
                query(duration_quantile(S, 0.5, S.models, "queue_wait"), "{{model}} · p50"),
                query(duration_quantile(S, 0.99, S.models, "queue_wait"), "{{model}} · p99"),
            ],
            unit="s",
            width=8,
            log=True,
            runbook="DistilleryLatency",
            about="Time from a request decoded to the start of its batch.",
        ),
        graph(
            "Queued requests",
            [query(S.gauge("distillery_requests_queued", S.models))],
            unit="none",
            width=8,
            about="Requests that wait for a run now. With short runs the queue is empty whenever it is looked at.",
        ),
        graph(
            "Batch size",
            [
                query(
                    f"{S.rate('distillery_batch_size_images_sum', S.models)}"
                    f" / ({S.rate('distillery_batch_size_images_count', S.models)} > 0)"
                )
            ],
            unit="none",
            width=8,
            about="Images per session.run, mean; a batch is whatever has arrived when a run starts.",
        ),
        graph(
            "In flight and limit",
            [
                query(S.gauge("distillery_requests_in_flight", S.models)),
                query(S.gauge("distillery_requests_in_flight_limit", by=()), "limit"),
            ],
            unit="none",
            log=True,
            runbook="DistilleryAvailability",
            about="Requests received and not answered yet, and how many may be, over all API processes.",
        ),
        graph(
            "Inference time per batch",
            [
                query(duration_quantile(S, 0.5, S.models, "inference_duration"), "{{model}} · p50"),
                query(duration_quantile(S, 0.99, S.models, "inference_duration"), "{{model}} · p99"),
            ],
            unit="s",
            log=True,
            about="Seconds of one session.run, for batches of any size.",
        ),
    ]


def processes() -> list[Json]:
    """Processes and what the operating system gives them."""
    lag = f"sum by (instance, le) (rate({S.select('distillery_event_loop_lag_seconds_bucket')}[{S.window}]))"
    return [
        row("Processes"),
        graph(
            "Processes",
            [query(S.gauge("distillery_processes", by=("process",)), "{{process}}")],
            unit="none",
            width=8,
            runbook="DistilleryProcessesRestart",
            about="API processes and workers that run.",
        ),
        graph(
            "Restarts",
            [
                query(
                    "sum by (process)"
                    f" (increase({S.select('distillery_process_restarts_total')}[{S.window}]))",
                    "{{process}}",
                )
            ],
            unit="none",
            width=8,
            runbook="DistilleryProcessesRestart",
            about="Processes that died or did not respond, and were replaced.",
        ),
        graph(
            "CPU",
            [
                query(S.rate("distillery_process_cpu_seconds_total", by=("process",)), "{{process}}"),
                query(S.gauge("distillery_usable_cores", by=()), "usable cores"),
            ],
            unit="none",
            width=8,
            runbook="DistilleryThrottled",
            about="Cores in use, and those that affinity and quota allow.",
        ),
        graph(
            "Memory",
            [query(S.gauge("distillery_process_resident_memory_bytes", by=("process",)), "{{process}}")],
            unit="bytes",
            width=8,
            about="Resident memory of all processes; pages that they share count for each of them.",
        ),
        graph(
            "File descriptors",
            [
                query(S.gauge("distillery_process_open_fds", by=("process",)), "{{process}} · open"),
                query(
                    S.gauge("distillery_process_max_fds", by=("process",), total="max"),
                    "{{process}} · limit of one",
                ),
            ],
            unit="none",
            width=8,
            log=True,
            runbook="DistilleryFileDescriptors",
            about="Open descriptors of all processes, and how many one process may open.",
        ),
        graph(
            "Event-loop lag",
            [
                query(
                    f"histogram_quantile({quantile}, {lag}) >= 0", f"{{{{instance}}}} · p{quantile * 100:.0f}"
                )
                for quantile in (0.5, 0.99)
            ],
            unit="s",
            width=8,
            log=True,
            runbook="DistilleryEventLoopLag",
            about="Time by which timers of the API processes are late; every request waits as long.",
        ),
        graph(
            "Throttling",
            [
                query(
                    f"sum by (instance) (rate({S.select('distillery_cpu_throttled_periods_total')}[{S.window}]))"
                    f" / clamp_min(sum by (instance)"
                    f" (rate({S.select('distillery_cpu_periods_total')}[{S.window}])), 1e-9)",
                    "{{instance}} · periods",
                ),
                query(
                    f"sum by (instance) (rate({S.select('distillery_cpu_throttled_seconds_total')}[{S.window}]))",
                    "{{instance}} · seconds per second",
                ),
            ],
            unit="percentunit",
            width=8,
            runbook="DistilleryThrottled",
            about="Share of the CPU quota's periods in which it stopped the service, and for how long.",
        ),
        graph(
            "Alerts",
            [
                query(
                    f"count by (alertname, severity) ({FIRING}) or label_replace(vector(0),"
                    ' "alertname", "none", "", "")',
                    "{{alertname}} {{severity}}",
                )
            ],
            unit="none",
            width=8,
            about="Alerts that fire, by name.",
        ),
        table(
            "Build",
            [
                query(
                    f"count by (instance, version, python, onnxruntime, litserve)"
                    f" ({S.select('distillery_build_info')})",
                    form="table",
                    now=True,
                )
            ],
            columns={},
            width=8,
            about="Versions of the software of each instance.",
        ),
    ]


def service() -> Json:
    """Return the dashboard."""
    return dashboard(
        "distillery-service",
        "Distillery: service",
        "Rate, errors and duration of requests, objectives, queues and processes.",
        [*overview(), *objectives(), *requests(), *routes(), *queues(), *processes()],
        source_variables(),
    )
