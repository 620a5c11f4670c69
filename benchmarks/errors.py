"""The one error of the benchmarks."""

from distillery import DistilleryError


class BenchmarkError(DistilleryError):
    """A measurement that would say nothing: a wrong answer, a failed request, a server that did not start."""
