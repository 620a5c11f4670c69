"""Which requests have a span: the samplers that `OTEL_TRACES_SAMPLER` names, and the parent in `traceparent`.

They decide as the SDK's samplers do, which a test compares them with, in a tenth of the time: a request that has no
span costs as good as nothing.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple, Self

from distillery import DistilleryError, unknown
from serving.engine.telemetry.correlation import PATTERNS, TRACEPARENT

_LOW_BITS = (1 << 64) - 1
_ROOTS = {"always_on": 1.0, "always_off": 0.0, "traceidratio": None}
SAMPLERS = (*_ROOTS, *(f"parentbased_{name}" for name in _ROOTS))
"""The values of `OTEL_TRACES_SAMPLER` that need no package of their own."""
_match = re.compile(PATTERNS[TRACEPARENT] + rb"(?:-.*)?").fullmatch


class TracingError(DistilleryError):
    """Tracing is on, and cannot work."""


class Parent(NamedTuple):
    """The span of the caller."""

    trace_id: int
    span_id: int
    sampled: bool

    @classmethod
    def of(cls, traceparent: bytes) -> Self | None:
        """Return the span that the header names (W3C Trace Context, section 3.2); None for an invalid one."""
        if not _match(traceparent):
            return None
        trace_id, span_id = int(traceparent[3:35], 16), int(traceparent[36:52], 16)
        version = traceparent[:2]
        if not trace_id or not span_id or version == b"ff" or (version == b"00" and len(traceparent) != 55):
            return None
        return cls(trace_id, span_id, bool(int(traceparent[53:55], 16) & 1))


class Sampler(NamedTuple):
    """Decides which requests have a span."""

    parent_based: bool
    """Whether the caller decides where there is one."""
    bound: int
    """The share of all other traces, of 2⁶⁴."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """Return the sampler that `OTEL_TRACES_SAMPLER` and its `_ARG` describe. Raises `TracingError`."""
        name = environment.get("OTEL_TRACES_SAMPLER", "").strip().lower() or "parentbased_always_on"
        if name not in SAMPLERS:
            raise TracingError(f"OTEL_TRACES_SAMPLER: {unknown('sampler', name, SAMPLERS)}")
        share = _ROOTS[name.removeprefix("parentbased_")]
        if share is None:
            share = _share(environment.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or "1")
        return cls(name.startswith("parentbased_"), round(share * (1 << 64)))

    def samples(self, trace_id: int, parent: Parent | None) -> bool:
        """Return whether a request of this trace has a span."""
        if parent and self.parent_based:
            return parent.sampled
        return trace_id & _LOW_BITS < self.bound


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise TracingError(f"OTEL_TRACES_SAMPLER_ARG is {text[:40]!r}; expected a share from 0 to 1")
    return share
