"""The only bridge from a torch checkpoint to the ONNX model repository that `serving` reads."""

import distillery  # noqa: F401 - before onnxruntime, which it forbids to report its use
