"""The dashboard *Distillation*: what students gain over the teacher, and what it costs."""

from expressions import (
    DASHBOARD,
    SPEEDUPS,
    TEACHER_ONLY,
    agreement,
    cpu_per_image,
    duration_quantile,
    escalated_share,
    live_accuracy,
    rejected_share,
    seconds_per_image,
    speedup,
)
from panels import Json, dashboard, graph, heatmap, query, row, source_variables, table, tile

S = DASHBOARD
STUDENTS = 'model=~"$model", model!="teacher"'
BOTH = " Needs traffic of the same kind on the teacher and the model."
PRICE_VARIABLE = "price"


def fact(metric: str, models: str = S.models) -> str:
    """Return a number of the manifests, the same on every instance."""
    return S.gauge(f"distillery_model_{metric}", models, total="max")


def cost_per_million(models: str) -> str:
    """Return the cost of the CPU time of a million images, by the price of a core-hour."""
    return f"({cpu_per_image(S, models)}) * 1e6 / 3600 * ${PRICE_VARIABLE}"


def gain() -> list[Json]:
    """Numbers of each student relative to the teacher."""
    return [
        row("Gain over the teacher"),
        tile(
            "Speedup: inference per image (×)",
            speedup(S, "inference per image", STUDENTS),
            unit="none",
            decimals=2,
            runbook="DistilleryStudentNotFaster",
            about="The teacher's seconds of session.run per image divided by the model's." + BOTH,
        ),
        tile(
            "Speedup: median response (×)",
            speedup(S, "response p50", STUDENTS),
            unit="none",
            decimals=2,
            about="The teacher's median response time divided by the model's: the speedup as clients see it."
            + BOTH,
        ),
        tile(
            "Speedup: CPU time per image (×)",
            speedup(S, "CPU time per image", STUDENTS),
            unit="none",
            decimals=2,
            about="The teacher's CPU time per image divided by the model's. Runs are measured by model; everything"
            " else counts equally for each request." + BOTH,
        ),
        tile(
            "Size reduction (×)",
            f"scalar({S.gauge('distillery_model_size_bytes', TEACHER_ONLY, by=(), total='max')})"
            f" / {fact('size_bytes', STUDENTS)}",
            unit="none",
            decimals=1,
            about="The teacher's file size divided by the model's.",
        ),
        tile(
            "Accuracy against the teacher",
            f"{fact('test_accuracy_ratio', STUDENTS)}"
            f" - scalar({S.gauge('distillery_model_test_accuracy_ratio', TEACHER_ONLY, by=(), total='max')})",
            unit="percentunit",
            decimals=2,
            about="Difference on the 10,000 test digits, in percentage points; negative: less accurate.",
        ),
        tile(
            "Agreement with the teacher",
            agreement(S, STUDENTS),
            unit="percentunit",
            decimals=2,
            runbook="DistilleryAgreement",
            about="Share of a sample of live images, one per second and API process, to which model and teacher assign"
            " the same digit.",
        ),
        tile(
            "Accepted share",
            f"1 - {rejected_share(S, S.models)}",
            unit="percentunit",
            decimals=1,
            runbook="DistilleryAcceptance",
            about="Share of live images whose prediction is accepted: its confidence reaches the model's threshold.",
        ),
        tile(
            "Cost per million predictions",
            cost_per_million(S.models),
            unit="currencyUSD",
            decimals=3,
            about="CPU time of a million images, at the price of a core-hour that is set at the top.",
        ),
    ]


def speed() -> list[Json]:
    """Latency and throughput side by side, and what they consist of."""
    return [
        row("Speed"),
        graph(
            "Response time",
            [
                query(duration_quantile(S, 0.5, S.models), "{{model}} · p50"),
                query(duration_quantile(S, 0.99, S.models), "{{model}} · p99"),
            ],
            unit="s",
            log=True,
            runbook="DistilleryLatency",
            about="From the body received to the response handed over, without the network, by a histogram.",
        ),
        graph(
            "Throughput",
            [query(S.rate("distillery_images_total", S.models))],
            unit="ops",
            about="Images classified per second.",
        ),
        response_times(),
        graph(
            "Speedup over the teacher (×)",
            [query(speedup(S, measure, STUDENTS), f"{{{{model}}}} · {measure}") for measure in SPEEDUPS],
            unit="none",
            log=True,
            runbook="DistilleryStudentNotFaster",
            about="Inference per image is the speedup of the model itself, response that of whole requests."
            + BOTH,
        ),
        graph(
            "Inference time per image",
            [query(seconds_per_image(S, S.models))],
            unit="s",
            log=True,
            about="Seconds of session.run divided by images; it falls as batches grow.",
        ),
        graph(
            "CPU time per image",
            [query(cpu_per_image(S, S.models))],
            unit="s",
            log=True,
            about="The model's runs, and an equal part for each request of all other CPU time of the service.",
        ),
        graph(
            "Cost per million predictions",
            [query(cost_per_million(S.models))],
            unit="currencyUSD",
            log=True,
            about="CPU time per image, at the price of a core-hour that is set at the top.",
        ),
    ]


def response_times() -> Json:
    """Return a heatmap that repeats for every selected model."""
    buckets = S.rate("distillery_request_duration_seconds_bucket", 'model=~"$model"', by=("le",))
    made = heatmap(
        "Response times of $model",
        buckets,
        unit="s",
        width=24,
        about="Requests per second by response time; one figure for each model.",
    )
    return {**made, "repeat": "model", "repeatDirection": "h", "maxPerRow": 3}


def quality() -> list[Json]:
    """Accuracy, agreement and confidence."""
    return [
        row("Quality"),
        graph(
            "Test accuracy",
            [query(fact("test_accuracy_ratio"))],
            unit="percentunit",
            width=6,
            about="Share of the 10,000 test digits that the exported file classifies correctly.",
        ),
        graph(
            "Agreement with the teacher",
            [query(agreement(S, STUDENTS))],
            unit="percentunit",
            width=6,
            runbook="DistilleryAgreement",
            about="Share of the sampled live images with the teacher's digit. It is no accuracy: both may be wrong.",
        ),
        graph(
            "Accepted share",
            [
                query(f"1 - {rejected_share(S, S.models)}"),
                query(fact("validation_accepted_ratio"), "{{model}} · validation"),
            ],
            unit="percentunit",
            width=6,
            runbook="DistilleryAcceptance",
            about="Share of live images whose prediction is accepted, and that of validation digits.",
        ),
        graph(
            "Escalated share",
            [query(escalated_share(S, S.models))],
            unit="percentunit",
            width=6,
            about="Share of a cascade's images that its teacher classified. Its runs are those of its two models.",
        ),
        graph(
            "Live accuracy",
            [query(live_accuracy(S, S.models))],
            unit="percentunit",
            width=8,
            about="Share of the live images whose true digit clients have sent to POST /feedback that the model"
            " classified correctly. People label what they notice: GET /feedback has the numbers and intervals.",
        ),
        graph(
            "Predictions by digit",
            [
                query(
                    f"{S.rate('distillery_predictions_total', S.models, by=('digit',))}"
                    f" / scalar({S.rate('distillery_predictions_total', S.models, by=())} > 0)",
                    "{{digit}}",
                )
            ],
            unit="percentunit",
            width=8,
            runbook="DistilleryDigitDrift",
            about="Share of each digit in the predictions of the selected models. In MNIST each digit has 9 to 11 %.",
        ),
        graph(
            "Drift in an hour",
            [
                query(
                    'job_model:distillery_digit_drift:distance1h{job=~"$job", model=~"$model"}',
                    "{{model}} · digits",
                ),
                query(
                    'job_model:distillery_confidence_drift:ratio1h{job=~"$job", model=~"$model"}',
                    "{{model}} · confidence",
                ),
            ],
            unit="percentunit",
            width=8,
            runbook="DistilleryConfidenceDrift",
            about="Digits: the share of predictions that would have to be others to have the frequencies of the"
            " training set. Confidence: how much less is accepted than of validation digits.",
        ),
        models_table(),
    ]


def models_table() -> Json:
    """Return a table with a row per model, merged from four metrics by their common labels."""
    facts = {
        "A": ("test_accuracy_ratio", ("Test accuracy", "percentunit", 2)),
        "B": ("parameters", ("Parameters", "short", 2)),
        "C": ("size_bytes", ("File size", "decbytes", 2)),
    }
    queries = [query(fact(metric), form="table", now=True) for metric, _ in facts.values()]
    info = S.gauge(
        "distillery_model_info", S.models, by=("model", "version", "precision", "architecture"), total="max"
    )
    return table(
        "Models in the repository",
        [*queries, query(info, form="table", now=True)],
        columns={letter: column for letter, (_, column) in facts.items()},
        width=24,
        about="From each model's manifest.",
    )


def distillation() -> Json:
    """Return the dashboard."""
    price = {
        "name": PRICE_VARIABLE,
        "label": "Price of a core-hour (USD)",
        "type": "textbox",
        "query": "0.04",
        "current": {"text": "0.04", "value": "0.04", "selected": True},
    }
    return dashboard(
        "distillery-distillation",
        "Distillery: distillation",
        "Speed, cost and quality of students against their teacher, on live traffic.",
        [*gain(), *speed(), *quality()],
        [*source_variables(), price],
    )
