"""The state of a service as tables in a terminal."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.monitor.state import ModelState, State

_BARS = "▁▂▃▄▅▆▇█"


def screen(url: str, state: State, history: Mapping[str, Sequence[float]]) -> RenderableType:
    """Return the screen; `history` has each model's images per second, the latest last."""
    parts: list[RenderableType] = [_service(url, state), _models(state, history)]
    parts += [
        Text(line)
        for line in (_rates("responses/s", state.statuses), _rates("errors/s", state.rejections))
        if line
    ]
    return Group(*parts)


def _service(url: str, state: State) -> Text:
    build = state.build.get("version", "?")
    processes = ", ".join(f"{count:.0f} {kind}" for kind, count in state.processes.items() if count)
    facts = [
        f"distillery {build}, up {_duration(state.uptime_s)}",
        f"processes {processes or 'none'}, {state.restarts:.0f} restarted",
        f"CPU {state.cpu_cores:.2f} of {state.usable_cores:.0f} cores",
        f"memory {state.memory_bytes / 1e6:,.0f} MB",
        f"descriptors {state.descriptors:.0f}, limit {state.max_descriptors:,.0f} each",
        f"in flight {state.in_flight:.0f} of {state.in_flight_limit:,.0f}",
    ]
    if state.lag_p99_s is not None:
        facts.append(f"event-loop lag p99 {_time(state.lag_p99_s)}")
    if state.throttled is not None:
        facts.append(f"throttled {state.throttled:.0%}")
    return Text.assemble((f"{url}\n", "bold"), " · ".join(facts))


def _models(state: State, history: Mapping[str, Sequence[float]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("model", no_wrap=True)
    columns = ("req/s", "images/s", "5xx", "p50", "p99", "run/img", "CPU/img", "batch")
    for name in (*columns, "× run", "× p50", "× CPU", "accuracy", "agrees", "accepted"):
        table.add_column(name, justify="right", no_wrap=True)
    if history:
        table.add_column("images/s over time", no_wrap=True)
    for name, model in state.models.items():
        cells = [name, *_figures(model), *_gain(model, state.teacher), *_quality(model)]
        table.add_row(*cells, *([_sparkline(history.get(name, ()))] if history else []))
    return table


def _figures(model: ModelState) -> list[str]:
    return [
        f"{model.requests_per_s:,.1f}",
        f"{model.images_per_s:,.1f}",
        _share(model.errors, 1),
        *map(_time, (model.p50_s, model.p99_s, model.inference_s, model.cpu_s)),
        "·" if model.batch_images is None else f"{model.batch_images:.1f}",
    ]


def _gain(model: ModelState, teacher: ModelState | None) -> list[str]:
    speedups = {} if model is teacher else model.speedups(teacher)
    return [
        "·" if (value := speedups.get(name)) is None else f"{value:.2f}"
        for name in ("inference_s", "p50_s", "cpu_s")
    ]


def _quality(model: ModelState) -> list[str]:
    return [_share(model.accuracy, 2), _share(model.agreement, 1), _share(model.accepted, 1)]


def _rates(title: str, rates: Mapping[str, float]) -> str:
    ordered = sorted(rates.items(), key=lambda item: -item[1])
    return f"{title}: " + " · ".join(f"{name} {rate:,.1f}" for name, rate in ordered) if rates else ""


def _share(value: float | None, decimals: int) -> str:
    return "·" if value is None else f"{value:.{decimals}%}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "·"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _sparkline(values: Sequence[float]) -> str:
    largest = max(values, default=0.0)
    if not largest:
        return ""
    return "".join(_BARS[min(7, int(8 * value / largest))] if value else " " for value in values)
