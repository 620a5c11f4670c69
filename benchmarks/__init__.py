"""The evidence: what each model costs in a session, over HTTP, and in training."""

import distillery  # noqa: F401 - before onnxruntime, which it forbids to report its use
