"""Triton's model configuration, the same over REST and gRPC."""

from typing import Any

from serving.model.repository import MODEL_FILE, Manifest
from serving.model.versions import VersionPolicy

PLATFORM = "onnxruntime_onnx"
"""Triton's name for it."""


def model_config(model: Manifest, policy: VersionPolicy, max_images: int) -> dict[str, Any]:
    """Return the content of config.pbtxt in Triton's JSON form; `max_batch_size` is this service's limit."""
    fields = {
        field: [
            {"name": spec.name, "data_type": f"TYPE_{spec.datatype}", "dims": spec.shape[1:]}
            for spec in specs
        ]
        for field, specs in (("input", model.inputs), ("output", model.served_outputs))
    }
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "default_model_filename": MODEL_FILE,
        "version_policy": policy.config(),
        "max_batch_size": max_images,
        "dynamic_batching": {},
        **fields,
    }
