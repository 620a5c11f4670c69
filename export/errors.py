"""The one error of the export stage."""

from distillery import DistilleryError


class ExportError(DistilleryError):
    """A graph that is not what it should be, or does not compute what the checkpoint computes."""
