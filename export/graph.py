"""The ONNX graph of a network, written node by node.

A dozen nodes need no general exporter: torch's takes seconds to load, and describes the machine it ran on in the file.
Names are short and equal constants are stored once: in a small convolutional network they would take as much space as
the weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper

from export.fold import Layer
from serving.model.graph_check import IR_VERSION, OPSET
from serving.model.repository import INPUTS, OUTPUTS
from serving.model.session import open_session
from serving.model.tensors import Images

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
        helper.set_model_props(model, dict(values))
        return Graph(model)


def to_onnx(members: Sequence[Sequence[Layer]]) -> Graph:
    """Build the fp32 graph of a network's members, as `export.fold` returns them, with a free batch dimension.

    As in `Ensemble`, the logits of several members are the mean of their log-probabilities.
    """
    graph = GraphBuilder()
    shape = [-1, 1, 28, 28] if members[0][0].weight.ndim == 4 else [-1, 784]
    pixels = graph.node("Reshape", graph.node("Cast", "image", to=onnx.TensorProto.FLOAT), np.array(shape))
    if len(members) == 1:
        _add_member(graph, pixels, members[0], output="logits")
    else:
        each = [
            graph.node("Unsqueeze", _add_member(graph, pixels, layers), np.array([0])) for layers in members
        ]
        logarithms = graph.node("LogSoftmax", graph.node("Concat", *each, axis=0), axis=2)
        graph.node("ReduceMean", logarithms, np.array([0]), output="logits", keepdims=0)
    graph.node("Softmax", "logits", output="probabilities", axis=1)
    return graph.build("fp32")


def _add_member(graph: "GraphBuilder", values: str, layers: Sequence[Layer], output: str = "") -> str:
    """Add one network, and return the name of its logits."""
    for index, (weight, bias, pool) in enumerate(layers):
        last = index == len(layers) - 1
        if weight.ndim == 4:
            values = graph.node("Conv", values, weight, bias, pads=[1, 1, 1, 1])
        else:
            if index and layers[index - 1].weight.ndim == 4:
                values = graph.node("Reshape", values, np.array([-1, weight.shape[1]]))
            values = graph.node("Gemm", values, weight, bias, output=output if last else "", transB=1)
        if not last:
            values = graph.node("Relu", values)
        if pool:
            values = graph.node("MaxPool", values, kernel_shape=[2, 2], strides=[2, 2])
    return values


class GraphBuilder:
    """The nodes and constants of a graph under construction, with generated names."""

    def __init__(self) -> None:
        self._names = count()
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}

    def node(
        self,
        kind: str,
        *inputs: str | npt.NDArray[np.generic] | np.generic,
        output: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node and return the name of its output; an input that is not a name becomes a constant."""
        names = [each if isinstance(each, str) else self._constant(np.asarray(each)) for each in inputs]
        output = output or self._name()
        self._nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def build(self, name: str) -> Graph:
        """Return the graph, with the inputs and outputs of every model, checked by onnx."""
        types = {"UINT8": onnx.TensorProto.UINT8, "FP32": onnx.TensorProto.FLOAT}
        inputs, outputs = (
            [helper.make_tensor_value_info(t.name, types[t.datatype], ["batch", *t.shape[1:]]) for t in specs]
            for specs in (INPUTS, OUTPUTS)
        )
        model = helper.make_model(
            helper.make_graph(self._nodes, name, inputs, outputs, list(self._constants.values())),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="distillery",
        )
        onnx.checker.check_model(model, full_check=True)
        return Graph(model)

    def _name(self) -> str:
        return f"t{next(self._names)}"

    def _constant(self, value: npt.NDArray[np.generic]) -> str:
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(value, self._name())
        return self._constants[key].name
