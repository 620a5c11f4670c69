"""Check of an ONNX file before onnxruntime reads it: it contains what `export` writes, and nothing else.

onnxruntime is a large program in C++, and an ONNX file may name other files to read, operators of plugins, nested
graphs and functions. Here a file is read by a strict reader with the schema of the few fields that exported files have
(onnx.proto of ONNX 1.19), then checked against lists of what is allowed.
"""

import math
from collections.abc import Sequence
from typing import Protocol

from serving.model.wire_format import Field, Message, Schema, WireFormatError, read_message

MAX_BYTES = 512 * 1024 * 1024
"""Of a file; an ensemble of ten teachers has 100 MB."""
IR_VERSION = 10
OPSET = 20
"""Versions of file format and operators that `export` writes."""
OPERATORS = frozenset(
    {
        *("Cast", "Concat", "Conv", "DequantizeLinear", "Gemm", "LogSoftmax", "MaxPool"),
        *("QuantizeLinear", "ReduceMean", "Relu", "Reshape", "Softmax", "Unsqueeze"),
    }
)
ITEM_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8}
"""Size of an item by data type: FLOAT, UINT8, INT8, INT32, INT64."""
MAX_RANK = 8
MAX_SIZE = 1 << 20
"""Of each dimension."""

_DATA_TYPES = {"FP32": 1, "UINT8": 2}

_ATTRIBUTE: Schema = {
    1: Field("name", "text"),
    2: Field("f", "float"),
    3: Field("i", "integer"),
    4: Field("s", "text"),
    5: "a tensor, which exported files have as an initializer",
    6: "a subgraph",
    8: Field("ints", "integer", repeated=True),
    11: "subgraphs",
    20: Field("type", "integer"),
    21: "a reference to an attribute of a function",
}
_NODE: Schema = {
    1: Field("input", "text", repeated=True),
    2: Field("output", "text", repeated=True),
    3: Field("name", "text"),
    4: Field("op_type", "text"),
    5: Field("attribute", _ATTRIBUTE, repeated=True),
    7: Field("domain", "text"),
}
_TENSOR: Schema = {
    1: Field("dims", "integer", repeated=True),
    2: Field("data_type", "integer"),
    8: Field("name", "text"),
    9: Field("raw_data", "bytes"),
    13: "external data: its values are in another file",
    14: "external data: its values are in another file",
}
_DIMENSION: Schema = {1: Field("dim_value", "integer"), 2: Field("dim_param", "text")}
_SHAPE: Schema = {1: Field("dim", _DIMENSION, repeated=True)}
_TENSOR_TYPE: Schema = {1: Field("elem_type", "integer"), 2: Field("shape", _SHAPE)}
_TYPE: Schema = {1: Field("tensor_type", _TENSOR_TYPE)}
_VALUE: Schema = {1: Field("name", "text"), 2: Field("type", _TYPE)}
_GRAPH: Schema = {
    1: Field("node", _NODE, repeated=True),
    2: Field("name", "text"),
    5: Field("initializer", _TENSOR, repeated=True),
    11: Field("input", _VALUE, repeated=True),
    12: Field("output", _VALUE, repeated=True),
    13: Field("value_info", _VALUE, repeated=True),
    15: "sparse initializers",
}
_OPSET: Schema = {1: Field("domain", "text"), 2: Field("version", "integer")}
_ENTRY: Schema = {1: Field("key", "text"), 2: Field("value", "text")}
_MODEL: Schema = {
    1: Field("ir_version", "integer"),
    2: Field("producer_name", "text"),
    3: Field("producer_version", "text"),
    7: Field("graph", _GRAPH),
    8: Field("opset_import", _OPSET, repeated=True),
    14: Field("metadata_props", _ENTRY, repeated=True),
    20: "training information",
    25: "functions",
}


class GraphError(ValueError):
    """A file that `export` does not write. The message names the value found and what is expected."""


class Tensor(Protocol):
    """An input or output, as the manifest has it; -1 in `shape` is the batch dimension."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


def check_graph(content: bytes, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Check the content of an ONNX file with these inputs and outputs. Raises `GraphError`.

    What a graph computes is not checked, nor how long and in how much memory.
    """
    if len(content) > MAX_BYTES:
        raise GraphError(f"it has {len(content):,} bytes, more than {MAX_BYTES:,}")
    try:
        model = read_message(content, _MODEL, "model")
    except WireFormatError as error:
        raise GraphError(str(error)) from None
    if (version := model.get("ir_version")) != IR_VERSION:
        raise GraphError(f"IR version {version}, expected {IR_VERSION}")
    imports = [(each.get("domain", ""), each.get("version")) for each in model["opset_import"]]
    if imports != [("", OPSET)]:
        found = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in imports)
        raise GraphError(f"operator sets {found or 'missing'}, expected ai.onnx {OPSET} alone")
    if "graph" not in model:
        raise GraphError("it has no graph")
    graph = model["graph"]
    for index, node in enumerate(graph["node"]):
        _check_node(node, f"node {index}")
    for tensor in graph["initializer"]:
        _check_initializer(tensor)
    for kind, specs in (("input", inputs), ("output", outputs)):
        expected = [(spec.name, _DATA_TYPES.get(spec.datatype), spec.shape) for spec in specs]
        declared = [_signature(value) for value in graph[kind]]
        if declared != expected:
            raise GraphError(f"{kind}s {declared}, expected {expected} (name, data type, shape)")


def _check_node(node: Message, place: str) -> None:
    domain, operator = node.get("domain", ""), node.get("op_type")
    if domain:
        raise GraphError(f"{place}: operator {operator} of domain {domain!r}, expected ONNX's own operators")
    if operator not in OPERATORS:
        raise GraphError(f"{place}: operator {operator!r}, expected one of {', '.join(sorted(OPERATORS))}")


def _check_initializer(tensor: Message) -> None:
    """Check that an initializer has a known type and as many bytes as its shape takes."""
    place, kind, dims = f"initializer {tensor.get('name', '')!r}", tensor.get("data_type"), tensor["dims"]
    if kind not in ITEM_BYTES:
        raise GraphError(f"{place}: data type {kind}, expected one of {sorted(ITEM_BYTES)}")
    if len(dims) > MAX_RANK or not all(0 < size <= MAX_SIZE for size in dims):
        raise GraphError(f"{place}: shape {dims}, expected at most {MAX_RANK} sizes of 1 to {MAX_SIZE:,}")
    found, expected = len(tensor.get("raw_data", b"")), math.prod(dims) * ITEM_BYTES[kind]
    if found != expected:
        raise GraphError(f"{place}: {found:,} bytes, expected {expected:,} for the shape {dims}")


def _signature(value: Message) -> tuple[str, int | None, tuple[int, ...]]:
    """Return name, data type and shape of an input or output."""
    tensor = value.get("type", {}).get("tensor_type", {})
    dims = [
        -1 if "dim_param" in dim else dim.get("dim_value", -1)
        for dim in tensor.get("shape", {}).get("dim", [])
    ]
    return value.get("name", ""), tensor.get("elem_type"), tuple(dims)
