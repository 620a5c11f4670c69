"""Panels that compare students with the teacher: speed, accuracy, size."""

from panels import MODELS, QUANTILES, Json, graph, panel, query, tile

STUDENTS = 'model=~"$model", model!="teacher"'


def comparison() -> list[Json]:
    """Panels of each student relative to the teacher, and of the durations behind the ratios."""
    speedup = "model:distillery_speedup_over_teacher:ratio"
    duration = "model:distillery_request_duration_seconds:quantile5m"
    needs_both = " Needs traffic of the same kind on the teacher and the model within the same five minutes."
    return [
        tile(
            "Speedup: inference per image",
            f'{speedup}{{{STUDENTS}, measure="inference per image"}}',
            unit="suffix:×",
            decimals=1,
            about="The teacher's inference seconds per image divided by the model's." + needs_both,
        ),
        tile(
            "Speedup: median response time",
            f'{speedup}{{{STUDENTS}, measure="answer p50"}}',
            unit="suffix:×",
            decimals=1,
            about="The teacher's median response time divided by the model's: the speedup as clients see it."
            + needs_both,
        ),
        tile(
            "Accuracy against the teacher",
            f"max by (model) (distillery_model_test_accuracy_ratio{{{STUDENTS}}})"
            ' - scalar(max(distillery_model_test_accuracy_ratio{model="teacher"}))',
            unit="percentunit",
            decimals=2,
            about="Difference on the 10,000 test digits, in percentage points; negative: less accurate.",
        ),
        tile(
            "Size reduction over the teacher",
            'scalar(max(distillery_model_size_bytes{model="teacher"}))'
            f" / max by (model) (distillery_model_size_bytes{{{STUDENTS}}})",
            unit="suffix:×",
            decimals=1,
            about="The teacher's file size divided by the model's.",
        ),
        response_times(),
        graph(
            "Speedup over the teacher",
            [query(f"{speedup}{{{STUDENTS}}}", "{{model}} · {{measure}}")],
            unit="suffix:×",
            log=True,
            about="Inference per image is the speedup of the model itself, answer p50 and p99 those of whole requests."
            + needs_both,
        ),
        graph(
            "Inference time per image",
            [query(f"model:distillery_inference_seconds_per_image:mean5m{{{MODELS}}}")],
            unit="s",
            log=True,
            about="Seconds inside session.run divided by images; it falls as batches grow.",
        ),
        graph(
            "Median response time",
            [query(f'{duration}{{{MODELS}, quantile="0.5"}}')],
            unit="s",
            log=True,
            about="Half of the responses were faster.",
        ),
        graph(
            "99th percentile of the response time",
            [query(f'{duration}{{{MODELS}, quantile="0.99"}}')],
            unit="s",
            log=True,
            about="One response in a hundred was slower.",
        ),
    ]


def response_times() -> Json:
    """Return a panel that repeats for every selected model."""
    queries = [
        query(
            f'model:distillery_request_duration_seconds:quantile5m{{model="$model", quantile="{value}"}}',
            name,
        )
        for name, value in QUANTILES.items()
    ]
    about = "From the body received to the response handed over, without the network, interpolated in a histogram."
    made = graph("Response time · $model", queries, unit="s", about=about, width=24, log=True)
    return {**made, "repeat": "model", "repeatDirection": "h", "maxPerRow": 4}


def models_table() -> Json:
    """Return a table with a row per model, merged from four metrics by their common labels."""
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
