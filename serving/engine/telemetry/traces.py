"""OpenTelemetry: one span per prediction request, with its stages as events (`--tracing`, extra `tracing`).

The standard variables configure it: `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME` and the
others of the SDK, its exporter and its batch processor. A span is made when its request has ended, from the times that
are recorded anyway; a request that is not sampled costs one random number.

`TracingSettings` does without OpenTelemetry, which is imported by `open_traces`, after the fork.
"""

import os
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from importlib import import_module
from importlib.util import find_spec
from random import getrandbits
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple, Self

from distillery import unknown
from serving.engine.telemetry.record import Observable, Record
from serving.engine.telemetry.sampling import Parent, Sampler, TracingError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

_EXPORTERS = ("otlp", "none")
_MODULES = {
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
}
_CLOSING_SECONDS = 1.0
Sampled = Callable[[str, float, str], None]


class TracingSettings(NamedTuple):
    """What this module itself takes from the environment; the SDK reads the rest."""

    sampler: Sampler
    protocol: str
    """Of OTLP."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self | None:
        """Return the settings; None where the environment turns tracing off. Raises `TracingError`."""

        def value(name: str, default: str) -> str:
            return environment.get(name, "").strip().lower() or default

        exporter = value("OTEL_TRACES_EXPORTER", "otlp")
        if exporter not in _EXPORTERS:
            raise TracingError(f"OTEL_TRACES_EXPORTER: {unknown('exporter', exporter, _EXPORTERS)}")
        protocol = value("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        protocol = value("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol)
        if protocol not in _MODULES:
            raise TracingError(f"OTEL_EXPORTER_OTLP_PROTOCOL: {unknown('protocol', protocol, _MODULES)}")
        settings = cls(Sampler.of(environment), protocol)
        if exporter == "none" or value("OTEL_SDK_DISABLED", "false") == "true":
            return None
        _require("opentelemetry.sdk", "pip install '.[serving,tracing]'")
        _require(
            _MODULES[protocol], f"pip install opentelemetry-exporter-otlp-proto-{protocol.split('/')[0]}"
        )
        return settings


class Traces:
    """Makes the spans of one API process; an `Observer` of predictions."""

    def __init__(
        self,
        sampler: Sampler,
        export: "Callable[[ReadableSpan], None]",
        close: Callable[[], None],
        version: str,
        sampled: Sampled,
    ) -> None:
        """`export` receives each span, and `close` sends those that it still holds.

        `sampled` receives the model's slot, the duration in seconds and the trace id of each request that has both.
        """
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.sdk import trace as sdk  # noqa: PLC0415
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415

        self._api, self._sdk = trace, sdk
        self._flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
        self._sampler = sampler
        self._bound = sampler.bound
        self._sampled = sampled
        self._export = export
        self._close = close
        given = OTELResourceDetector().detect().attributes
        own: dict[str, str | int] = {
            "service.name": "distillery",
            "service.version": version,
            "process.pid": os.getpid(),
        }
        self._resource = Resource.create({name: value for name, value in own.items() if name not in given})
        self._scope = InstrumentationScope("distillery", version)

    def observe(self, request: Observable, status: int, ended: float) -> None:
        """Make the span of a request, if it is sampled."""
        traceparent = request.correlation.traceparent
        parent = Parent.of(traceparent) if traceparent else None
        if parent is None:
            low_bits = getrandbits(64)
            if low_bits >= self._bound:  # the usual case, which thus costs little
                return
            trace_id = getrandbits(64) << 64 | low_bits
        elif self._sampler.samples(parent.trace_id, parent):
            trace_id = parent.trace_id
        else:
            return
        request.trace_id = f"{trace_id:032x}"
        record = request.record(status, ended)
        self._export(self._span(trace_id, parent, request.correlation.tracestate, record))
        if record.endpoint and record.received:
            self._sampled(record.endpoint.slot, ended - record.received, request.trace_id)

    def _span(
        self, trace_id: int, parent: Parent | None, tracestate: bytes, record: Record
    ) -> "ReadableSpan":
        api, span_context = self._api, self._api.SpanContext
        state = api.TraceState.from_header([tracestate.decode()]) if parent and tracestate else None
        caller = None
        if parent:
            flags = self._flags if parent.sampled else api.DEFAULT_TRACE_OPTIONS
            caller = span_context(trace_id, parent.span_id, True, flags, state)
        offset = time.time_ns() - int(record.ended * 1e9)  # from `time.monotonic` to nanoseconds since 1970
        failed = record.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        return self._sdk.ReadableSpan(
            record.codec.route if _is_grpc(record) else f"{_method(record)} {record.codec.route}",
            span_context(trace_id, getrandbits(64) or 1, False, self._flags, state),
            caller,
            self._resource,
            _attributes(record),
            [
                self._sdk.Event(name, timestamp=offset + int(moment * 1e9))
                for name, moment in _stages(record).items()
                if moment
            ],
            kind=api.SpanKind.SERVER,
            status=api.Status(api.StatusCode.ERROR if failed else api.StatusCode.UNSET),
            start_time=offset + int(record.entered * 1e9),
            end_time=offset + int(record.ended * 1e9),
            instrumentation_scope=self._scope,
        )

    def close(self) -> None:
        """Send the spans not yet sent, for a second at most: the collector may not respond."""
        closing = Thread(target=self._close, daemon=True)
        closing.start()
        closing.join(_CLOSING_SECONDS)


def open_traces(settings: TracingSettings, version: str, sampled: Sampled) -> Traces:
    """Start the exporter that the environment describes; `sampled` is that of `Traces`."""
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    exporter = import_module(_MODULES[settings.protocol]).OTLPSpanExporter()
    processor = BatchSpanProcessor(exporter)
    return Traces(settings.sampler, processor.on_end, processor.shutdown, version, sampled)


def _attributes(record: Record) -> dict[str, str | int]:
    """Return the attributes, named as by OpenTelemetry's semantic conventions where these have a name."""
    attributes: dict[str, str | int] = {"distillery.request_id": record.id.decode()}
    if _is_grpc(record):
        service, _, method = record.codec.route.rpartition("/")
        attributes |= {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    else:
        attributes |= {"http.request.method": _method(record), "http.route": record.codec.route}
    attributes["http.response.status_code"] = record.status
    for name, value in (
        ("distillery.model", record.endpoint.name if record.endpoint else None),
        ("distillery.model_version", record.endpoint.version if record.endpoint else None),
        ("distillery.client", record.client),
        ("distillery.images", record.result.images if record.result else None),
        ("error.type", record.code),
    ):
        if value is not None:
            attributes[name] = value
    return attributes


def _is_grpc(record: Record) -> bool:
    return record.codec.name == "grpc"


def _method(record: Record) -> str:
    """Return the method of an HTTP request; all but POST are rejected."""
    return "_OTHER" if record.status == HTTPStatus.METHOD_NOT_ALLOWED else "POST"


def _stages(record: Record) -> dict[str, float]:
    """Return the stages of a request and their ends; 0 for one that it has not reached."""
    result = record.result
    return {
        "body received": record.received,
        "body decoded": record.decoded,
        "run started": result.started if result else 0.0,
        "run finished": result.finished if result else 0.0,
        "response encoded": record.ended if result else 0.0,
    }


def _require(module: str, fix: str) -> None:
    try:
        found = find_spec(module) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise TracingError(f"--tracing needs the module {module}: {fix}")
