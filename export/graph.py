"""From the folded network to an ONNX graph that holds exactly the nodes we mean, and nothing else."""

import warnings

import onnx
import torch

from export.errors import ExportError
from export.fold import Folded
from serving.model.repository import INPUTS, OUTPUTS
from training.recipe.schema import Architecture

OPSET = 20


def to_onnx(folded: Folded, architecture: Architecture) -> onnx.ModelProto:
    """Export `folded` with a free batch dimension.

    Raises `ExportError` when the graph is not the one expected of `architecture`.
    """
    with warnings.catch_warnings():  # the exporter's own deprecation chatter
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            folded,
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
    check(model, expected_nodes(architecture))
    return model


def expected_nodes(architecture: Architecture) -> list[str]:
    """Operator types of an fp32 graph, in order."""
    stages = [node for stage in architecture.stages for node in (*["Conv", "Relu"] * len(stage), "MaxPool")]
    flat = ["Reshape"] if stages else []
    member = [*stages, *flat, *["Gemm", "Relu"] * len(architecture.hidden), "Gemm"]
    if architecture.members == 1:
        return ["Cast", "Reshape", *member, "Softmax"]
    count = architecture.members
    mean = [*["Unsqueeze"] * count, "Concat", "LogSoftmax", "ReduceMean"]
    return ["Cast", "Reshape", *member * count, *mean, "Softmax"]


def check(model: onnx.ModelProto, nodes: list[str]) -> None:
    """Validate `model`, its operators, inputs and outputs. Raises `ExportError` naming what was found."""
    onnx.checker.check_model(model, full_check=True)
    found = [node.op_type for node in model.graph.node]
    if found != nodes:
        raise ExportError(f"the graph has nodes {found}, expected {nodes}")
    for specs, values in ((INPUTS, model.graph.input), (OUTPUTS, model.graph.output)):
        for spec, value in zip(specs, values, strict=True):
            dims = value.type.tensor_type.shape.dim
            shape = tuple(-1 if dim.dim_param else dim.dim_value for dim in dims)
            if (value.name, shape) != (spec.name, spec.shape):
                raise ExportError(f"the graph has {value.name} {shape}, expected {spec.name} {spec.shape}")


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter tells of the machine it ran on: stack traces, paths, doc strings."""
    graph = model.graph
    for part in (
        model,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
