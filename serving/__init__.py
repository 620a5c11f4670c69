"""Online inference: a LitServe service over a repository of ONNX models. Never imports torch or onnx."""

import distillery  # noqa: F401 - before onnxruntime, which it forbids to report its use
