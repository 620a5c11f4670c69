"""Measurements: models in a session, over HTTP and against other systems; training; and their tables and figures."""

import os

# Before onnxruntime, as in `distillery`; importing that would slow the start of every load generator.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
