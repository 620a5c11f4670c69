"""The exception of the benchmarks."""

from distillery import DistilleryError


class BenchmarkError(DistilleryError):
    """A measurement without a valid result: a wrong prediction, a failed request, a server that did not start."""
