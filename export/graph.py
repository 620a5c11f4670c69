"""The ONNX graph of a network: written by torch's exporter, stripped, and checked node by node."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch

from export import ExportError
from export.fold import fold
from serving.model.graph_check import OPSET
from serving.model.repository import INPUTS, OUTPUTS
from serving.model.session import open_session
from serving.model.tensors import Images
from training.model.network import Network
from training.recipe.schema import Architecture

BATCH = 256
"""Images per run where many are computed; what a convolutional network needs per image is 100 kB and more."""

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Graph:
    """An ONNX graph in memory; its bytes and its onnxruntime session are made once, when first used."""

    model: onnx.ModelProto

    @cached_property
    def content(self) -> bytes:
        """The file."""
        return self.model.SerializeToString()

    @cached_property
    def session(self) -> onnxruntime.InferenceSession:
        """A CPU session of `content`, with as many threads as torch uses."""
        return open_session(self.content, threads=torch.get_num_threads())

    def logits(self, images: Images) -> Logits:
        """Compute the logits `float32 [N, 10]` of images `uint8 [N, 28, 28]`."""
        (logits,) = self.run(["logits"], images)
        return logits

    def run(self, names: Sequence[str], images: Images) -> list[npt.NDArray[Any]]:
        """Compute the outputs `names` for images `uint8 [N, 28, 28]`."""
        batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
        parts = [self.session.run(names, {"image": batch}) for batch in batches]
        return [np.concatenate(each) for each in zip(*parts, strict=True)]

    def with_metadata(self, values: Mapping[str, str]) -> "Graph":
        """Return a copy with `values` as the file's metadata, which onnxruntime reads back."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        onnx.helper.set_model_props(model, dict(values))
        return Graph(model)


def to_onnx(network: Network, architecture: Architecture) -> Graph:
    """Fold and export `network` with a free batch dimension.

    Raises `ExportError` if the nodes, inputs or outputs are not those expected of `architecture`.
    """
    with warnings.catch_warnings():  # the exporter's own deprecation warnings
        warnings.simplefilter("ignore")
        cache_operators()
        program = torch.onnx.export(
            fold(network),
            (torch.zeros(2, 28, 28, dtype=torch.uint8),),  # 2: a batch of 1 would be taken for a constant
            input_names=[tensor.name for tensor in INPUTS],
            output_names=[tensor.name for tensor in OUTPUTS],
            dynamic_shapes={"image": {0: "batch"}},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise ExportError("torch.onnx.export returned no program")
    model = program.model_proto
    _strip(model)
    _check(model, expected_nodes(architecture))
    return Graph(model)


@cache
def cache_operators() -> None:
    """Let the exporter parse its 500 operator definitions once per process.

    By default it parses them anew for every graph, which is half of its time. torch is pinned;
    tests/export/test_graph.py checks that it uses this method.
    """
    from torch.onnx._internal.exporter._registration import ONNXRegistry  # noqa: PLC0415 - slow; few commands export

    ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]


def expected_nodes(architecture: Architecture) -> list[str]:
    """Return the operator types of an fp32 graph, in order."""
    stages = [node for stage in architecture.stages for node in (*["Conv", "Relu"] * len(stage), "MaxPool")]
    flat = ["Reshape"] if stages else []
    member = [*stages, *flat, *["Gemm", "Relu"] * len(architecture.hidden), "Gemm"]
    if architecture.members == 1:
        return ["Cast", "Reshape", *member, "Softmax"]
    count = architecture.members
    mean = [*["Unsqueeze"] * count, "Concat", "LogSoftmax", "ReduceMean"]
    return ["Cast", "Reshape", *member * count, *mean, "Softmax"]


def _check(model: onnx.ModelProto, nodes: list[str]) -> None:
    """Validate `model`, its operators, inputs and outputs. Raises `ExportError` naming what was found."""
    onnx.checker.check_model(model, full_check=True)
    found = [node.op_type for node in model.graph.node]
    if found != nodes:
        raise ExportError(f"the graph has the nodes {found}, expected {nodes}")
    for specs, values in ((INPUTS, model.graph.input), (OUTPUTS, model.graph.output)):
        for spec, value in zip(specs, values, strict=True):
            dims = value.type.tensor_type.shape.dim
            shape = tuple(-1 if dim.dim_param else dim.dim_value for dim in dims)
            if (value.name, shape) != (spec.name, spec.shape):
                raise ExportError(f"the graph has {value.name} {shape}, expected {spec.name} {spec.shape}")


def _strip(model: onnx.ModelProto) -> None:
    """Remove the exporter's stack traces, paths and doc strings, which describe the machine it ran on."""
    graph = model.graph
    parts = (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in (model, graph, *parts):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
