"""Export torch checkpoints to the ONNX model repository that `serving` reads; the only bridge between the two."""

import distillery


class ExportError(distillery.DistilleryError):
    """A checkpoint that cannot be exported, or a graph that does not compute what its network computes."""
