"""Sampling: the samplers and the `traceparent` of OpenTelemetry's SDK, which the service's own decide like."""

import random
from collections.abc import Mapping
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serving.engine.telemetry.sampling import SAMPLERS, Parent, Sampler, TracingError
from serving.engine.telemetry.traces import TracingSettings

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_decides_as_the_one_of_the_sdk(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": "0.3"}
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    theirs, ours = TracerProvider().sampler, Sampler.of(environment)
    numbers = random.Random(0)  # noqa: S311
    sampled = 0
    for index in range(600):
        trace_id = numbers.getrandbits(128)
        header = (None, f"00-{trace_id:032x}-{SPAN}-00", f"00-{trace_id:032x}-{SPAN}-01")[index % 3]
        context = TraceContextTextMapPropagator().extract({"traceparent": header} if header else {})
        expected = theirs.should_sample(context, trace_id, "name").decision is Decision.RECORD_AND_SAMPLE
        assert ours.samples(trace_id, Parent.of((header or "").encode())) == expected
        sampled += expected
    shares = {"always_on": 1.0, "always_off": 0.0, "traceidratio": 0.3}
    share = shares[name.removeprefix("parentbased_")]
    if name.startswith("parentbased_"):
        share = (share + 1) / 3
    assert abs(sampled / 600 - share) < 0.1


@pytest.mark.parametrize(
    "value",
    [
        *(f"00-{TRACE}-{SPAN}-{flags}" for flags in ("00", "01", "02", "03", "ff")),
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"01-{TRACE}-{SPAN}-01-more",
        f"01-{TRACE}-{SPAN}-01more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00{TRACE}{SPAN}01",
        "",
        "x",
    ],
)
def test_a_traceparent_is_read_as_by_the_sdk(value: str) -> None:
    context = TraceContextTextMapPropagator().extract({"traceparent": value})
    expected = trace.get_current_span(context).get_span_context()
    found = Parent.of(value.encode())
    assert (found is not None) == expected.is_valid
    if found:
        assert found == (expected.trace_id, expected.span_id, expected.trace_flags.sampled)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"OTEL_TRACES_SAMPLER": "traceidration"}, "did you mean traceidratio?"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"}, "is '2'; expected a share"),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1%"},
            "is '1%'; expected a share",
        ),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "there is no exporter 'zipkin'; known: otlp, none"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "there is no protocol 'http/json'"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"},
            "pip install opentelemetry-exporter-otlp-proto-grpc",
        ),
    ],
)
def test_a_variable_that_names_nothing_known_is_an_error(
    environment: Mapping[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.engine.telemetry import traces  # noqa: PLC0415

    monkeypatch.setattr(traces, "find_spec", lambda name: None if "proto.grpc" in name else object())
    with pytest.raises(TracingError) as caught:
        TracingSettings.of(environment)
    assert message in str(caught.value)


@pytest.mark.parametrize("variables", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_the_environment_can_turn_tracing_off(variables: Any) -> None:
    assert TracingSettings.of(variables) is None
    assert TracingSettings.of({}) == (Sampler(parent_based=True, bound=1 << 64), "http/protobuf")
