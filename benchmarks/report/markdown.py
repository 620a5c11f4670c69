"""Sections of the README: models and servers compared, what distillation brings, how it was measured."""

from typing import Any

from benchmarks.report.comparison import Row, compare_models, own_server
from benchmarks.report.sections import Source, Sources


def results_section(sources: Sources, picture: str) -> str:
    """Return the Markdown for a session result and an HTTP result: models, servers, how they were measured."""
    http = sources["http"].data
    rows = compare_models(sources["session"].data, http)
    return "\n\n".join(
        [
            _models_table(rows),
            _servers_table(rows, http["rows"]),
            f"![Latency and throughput of each model, alone and over HTTP]({picture})",
            "\n".join(measured(kind, source) for kind, source in sources.items()),
            limits(sources["http"]),
        ]
    )


def accuracy_section(sources: Sources, _: str) -> str:
    """Return the Markdown for results of `distillery-bench accuracy` and, where there is one, `training`."""
    sources = dict(sources)
    training = sources.pop("training", None)
    parts = [_accuracy_table(list(sources.values()))] + ([_training(training)] if training else [])
    return "\n\n".join(parts)


def _accuracy_table(sources: list[Source]) -> str:
    header = ["recipe", "seeds", "teacher", "student alone", "student distilled", "saved", "distilled, int8"]
    lines = [header]
    for source in sources:
        data = source.data
        rows = [data["test_errors"][name] for name in ("teacher", "student-alone", "student")]
        rows += [data["saved_by_distillation"], data["test_errors"]["student-int8"]]
        seeds = ", ".join(str(seed["seed"]) for seed in data["seeds"])
        lines.append([f"[{data['recipe']}]({source.link})", seeds, *map(errors_cell, rows)])
    return (
        table(lines)
        + "\n\nTest errors of 10,000; mean and 95 % interval (Student's t) where there are several seeds."
    )


def _training(source: Source) -> str:
    result, data = source.document, source.data
    header = ["", "notebook's own loop", "distillery-train", "times faster"]
    lines = [header]
    for role, name in (
        ("teacher", "an epoch of the teacher"),
        ("student", "an epoch of the distilled student"),
    ):
        row = data["epochs"][role]
        lines.append([name, f"{row['notebook_s']:.1f} s", f"{row['ours_s']:.1f} s", f"{row['ratio']:.1f}"])
    if target := data.get("target"):
        ours = f"{target['ours_s']:.0f} s"
        goal = f"from nothing to a student of {target['validation_accuracy']:.2%}, teacher included"
        schedule, faster = f"{target['notebook_schedule_s']:,.0f} s", f"{target['ratio_to_schedule']:.0f}"
        lines.append([f"{goal}; its whole schedule, extrapolated from its epochs", schedule, ours, faster])
        if mended := target["mended_loop"]:
            faster = f"{target['ratio_to_mended_loop']:.1f}"
            lines.append(
                [f"{goal}; its mended loop, stopped there", f"{mended['seconds']:,.0f} s", ours, faster]
            )
    precision = ", bfloat16" if data["bfloat16"] else ""
    machine = (
        f"{result['machine']['cpu']}, {result['machine']['cores']} cores, torch {result['versions']['torch']}"
    )
    note = (
        f"[Measured]({source.link}) in turns in one run on {machine}; threads a side: {data['threads']}; "
        "epochs at batch 64. There PIL, `DataLoader` and Adam, here resident digits and fused AdamW"
        f"{precision}. 98.18 % is what the notebook reports for its student; here it is reached on validation "
        "digits."
    )
    return table(lines) + f"\n\n{note}"


def errors_cell(row: Row) -> str:
    """Return a mean with its interval and what it is the mean of, from one row of an `accuracy` result."""
    if row["interval_95"] is None:
        return f"{row['mean']:.0f}"
    return f"{row['mean']:.1f} ± {row['interval_95']:.1f} ({', '.join(map(str, row['values']))})"


def _models_table(rows: list[Row]) -> str:
    header = [
        "model",
        "parameters",
        "file",
        "test errors (accuracy)",
        "session p50 / p99",
        "HTTP p50 / p99",
        f"requests/s, {rows[0]['connections']} connections",
        "images/s, 64 a request",
    ]
    note = (
        "× says how many times better than the teacher. Session: onnxruntime alone, one image, one thread. "
        "HTTP: one image as JSON, one connection."
    )
    return table([header, *map(_model_cells, rows)]) + f"\n\n{note}"


def _model_cells(row: Row) -> list[str]:
    return [
        f"`{row['model']}` {row['architecture']} {row['precision']}",
        _with_ratio(row, "parameters", f"{row['parameters'] / 1e6:.2f} M"),
        _with_ratio(row, "size_bytes", f"{row['size_bytes'] / 1e6:.2f} MB"),
        f"{row['test_errors']} ({row['test_accuracy']:.2%})",
        _with_ratio(row, "session_p50_us", f"{row['session_p50_us']:.0f} / {row['session_p99_us']:.0f} µs"),
        _with_ratio(row, "http_p50_ms", f"{row['http_p50_ms']:.2f} / {row['http_p99_ms']:.2f} ms"),
        _with_ratio(row, "requests_per_s", f"{row['requests_per_s']:,.0f}"),
        _with_ratio(row, "images_per_s", f"{row['images_per_s']:,.0f}") if row["images_per_s"] else "",
    ]


def _with_ratio(row: Row, figure: str, text: str) -> str:
    ratio = row["ratios"].get(figure)
    return text if ratio is None or ratio == 1 else f"{text} (×{ratio:.{0 if ratio >= 10 else 1}f})"


def _servers_table(models: list[Row], rows: list[Row]) -> str:
    connections = models[0]["connections"]
    alike = [row for row in rows if (row["body"], row["connections"]) == ("json", connections)]
    cells = {(row["server"], row["model"]): _server_cell(row) for row in alike}
    own = own_server(rows)
    servers = sorted({row["server"] for row in alike}, key=lambda server: (server != own, server))
    names = [row["model"] for row in models]
    lines = [["server", *(f"`{name}`" for name in names)]]
    lines += [[server, *(cells.get((server, name), "") for name in names)] for server in servers]
    note = f"Requests/s, in brackets p50 / p99: one image as JSON, {connections} connections."
    return table(lines) + f"\n\n{note}"


def _server_cell(row: Row) -> str:
    return f"{row['requests_per_s']:,.0f} ({row['p50_ms']:.2f} / {row['p99_ms']:.2f} ms)"


def table(lines: list[list[str]]) -> str:
    """Return a Markdown table of a header and rows of cells; all columns but the first are figures."""
    header, *body = lines
    ruler = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ruler, *body))


def measured(kind: str, source: Source) -> str:
    """Return one line that links a result and says on what and with what it was measured."""
    result, data = source.document, source.data
    machine, versions = result["machine"], result["versions"]
    commit = (result["commit"] or "unknown")[:10] + (" with changes" if result["uncommitted_changes"] else "")
    tools = [name for name in ("python", "onnxruntime", "litserve") if name in versions]
    parts = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB, {machine['os']}",
        ", ".join(f"{name} {versions[name]}" for name in tools),
        *_method(data),
        f"commit {commit}",
        result["date"][:10],
    ]
    return f"- [{kind}]({source.link}): {'; '.join(parts)}."


def _method(data: dict[str, Any]) -> list[str]:
    if "generator" in data:
        return [f"medians of {data['rounds']} rounds", f"load by {data['generator']}"]
    return [f"{data['rounds']} rounds pooled"] if "rounds" in data else []


def limits(source: Source) -> str:
    """Return the limitations that a result carries, as a sentence."""
    return f"Limits: {'; '.join(source.data['limitations'])}."
