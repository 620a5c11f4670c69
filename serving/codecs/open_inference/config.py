"""Triton's model configuration, the same over REST and gRPC."""

from typing import Any

from serving.model.repository import MODEL_FILE, Manifest
from serving.model.versions import VersionPolicy


def platform(model: Manifest) -> str:
    """Return Triton's name for what runs a model; a model that consists of others is an ensemble there."""
    return "ensemble" if model.cascade else "onnxruntime_onnx"


def model_config(model: Manifest, policy: VersionPolicy, max_images: int) -> dict[str, Any]:
    """Return the content of config.pbtxt in Triton's JSON form; `max_batch_size` is this service's limit."""
    fields = {
        field: [
            {"name": spec.name, "data_type": f"TYPE_{spec.datatype}", "dims": spec.shape[1:]}
            for spec in specs
        ]
        for field, specs in (("input", model.inputs), ("output", model.served_outputs))
    }
    graph = {"backend": "onnxruntime", "default_model_filename": MODEL_FILE}
    return {
        "name": model.name,
        "platform": platform(model),
        **({} if model.cascade else graph),
        "version_policy": policy.config(),
        "max_batch_size": max_images,
        "dynamic_batching": {},
        **fields,
    }
