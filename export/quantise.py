"""Static int8 quantisation: the fp32 graph rewritten with QuantizeLinear and DequantizeLinear around each layer.

onnxruntime fuses every `DequantizeLinear, Conv or Gemm, Relu, QuantizeLinear` into one integer kernel. Activations
are uint8, weights int8 with one scale per output unit, biases int32. Two properties of these graphs save nodes: the
raw image is already quantised (scale 1, zero point 0), so the first layer needs neither Cast nor QuantizeLinear; and
every activation follows a ReLU, so its zero point is 0 and only its upper end is calibrated. Max-pooling and reshaping
operate on the integers.

The same file gives the same integers on every processor. x86 processors without VNNI multiply uint8 by int8 with
`vpmaddubsw`, which adds the products of two neighbours in 16 bits and saturates. So each unit's scale is chosen such
that the largest such sum fits: its weights use between 7 and 8 bits.

Names are short and equal constants are stored once: in a small convolutional network they would take as much space as
the weights.
"""

from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from export.graph import Graph
from serving.model.graph_check import IR_VERSION, OPSET
from serving.model.repository import INPUTS, OUTPUTS
from serving.model.tensors import Images

Float = npt.NDArray[np.float32]
MAX_PAIR = 128
"""Largest sum of two neighbouring weights of one sign: 255 · 128 = 32,640, and 16 bits hold up to 32,767."""


class Layer(NamedTuple):
    """Weight `[out, in]`, in a convolution `[out, in, 3, 3]`; bias `[out]`; whether 2x2 max-pooling follows."""

    weight: Float
    bias: Float
    pool: bool = False


def pair_sums(weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the largest absolute sum of two weights of one sign of each unit, `[out]`, of weights `[out, in, …]`.

    Of two neighbours in a fully connected layer. The order of a convolution's weights depends on its kernel, so there
    it is the sum of any two.
    """
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    # Padded: a single input has no neighbour.
    signed = np.pad(np.stack([rows, -rows]).clip(min=0), ((0, 0), (0, 0), (0, 1)))
    if weight.ndim == 4:
        signed = np.sort(signed)[..., -2:]
    return np.asarray((signed[..., :-1] + signed[..., 1:]).max(axis=(0, 2)))


def largest_sum(graph: Graph) -> int:
    """Return the largest absolute sum of two products of an int8 `graph`, for any activations."""
    weights = [numpy_helper.to_array(tensor) for tensor in graph.model.graph.initializer]
    matrices = [weight for weight in weights if weight.dtype == np.int8 and weight.ndim > 1]
    return 255 * max(int(pair_sums(weight).max()) for weight in matrices)


def read_layers(model: onnx.ModelProto) -> list[Layer]:
    """Return the layers of an fp32 graph written by `export.graph`, in order."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    layers: list[Layer] = []
    for node in model.graph.node:
        if node.op_type in {"Conv", "Gemm"}:
            weight = values[node.input[1]]
            # The exporter omits a bias of zeros.
            bias = values[node.input[2]] if len(node.input) > 2 else np.zeros(len(weight), np.float32)
            layers.append(Layer(weight, bias))
        elif node.op_type == "MaxPool":
            layers[-1] = layers[-1]._replace(pool=True)
    return layers


def hidden_activations(fp32: Graph, images: Images) -> list[Float]:
    """Compute the output of each ReLU for `images`: `float32 [N, units]` or `[N, channels, height, width]`."""
    model = onnx.ModelProto()
    model.CopyFrom(fp32.model)
    names = [node.output[0] for node in model.graph.node if node.op_type == "Relu"]
    for name in names:
        model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    activations: list[Float] = Graph(model).session.run(names, {"image": images})
    return activations


def quantise(layers: Sequence[Layer], ceilings: Sequence[float]) -> Graph:
    """Build the int8 graph.

    `ceilings` holds, for each layer but the last, the activation that becomes 255; larger ones saturate.
    """
    graph = _Nodes()
    scale, zero = np.float32(1), np.uint8(0)
    shape = [-1, 1, 28, 28] if layers[0].weight.ndim == 4 else [-1, 784]
    values = graph.node("Reshape", "image", np.array(shape))
    for index, (weight, bias, pool) in enumerate(layers):
        rows = weight.reshape(len(weight), -1)
        # One less than MAX_PAIR: rounding adds up to a half to each of the two.
        weight_scale = np.maximum(pair_sums(weight), 1e-8).astype(np.float32) / np.float32(MAX_PAIR - 1)
        bias_scale = (scale * weight_scale).astype(np.float32)
        weight_q = np.rint(rows / weight_scale[:, None]).astype(np.int8)
        bias_q = np.clip(np.rint(bias.astype(np.float64) / bias_scale), -(2**31), 2**31 - 1).astype(np.int32)
        if index and weight.ndim < layers[index - 1].weight.ndim:
            values = graph.node("Reshape", values, np.array([-1, weight.shape[1]]))
        inputs = (
            graph.node("DequantizeLinear", values, scale, zero),
            graph.dequantised(weight_q.reshape(weight.shape), weight_scale),
            graph.dequantised(bias_q, bias_scale),
        )
        if index == len(layers) - 1:
            graph.node("Gemm", *inputs, output="logits", transB=1)
            break
        if weight.ndim == 4:
            sums = graph.node("Conv", *inputs, pads=[1, 1, 1, 1])
        else:
            sums = graph.node("Gemm", *inputs, transB=1)
        scale = np.float32(max(ceilings[index], 1e-8) / 255)
        values = graph.node("QuantizeLinear", graph.node("Relu", sums), scale, zero)
        if pool:
            values = graph.node("MaxPool", values, kernel_shape=[2, 2], strides=[2, 2])
    graph.node("Softmax", "logits", output="probabilities", axis=1)
    return Graph(graph.model())


class _Nodes:
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

    def dequantised(self, values: npt.NDArray[np.signedinteger], scales: Float) -> str:
        """Dequantise rows of integers, one scale each; onnxruntime fuses only if zero points are explicit."""
        return self.node("DequantizeLinear", values, scales, np.zeros(len(values), values.dtype), axis=0)

    def model(self) -> onnx.ModelProto:
        types = {"UINT8": onnx.TensorProto.UINT8, "FP32": onnx.TensorProto.FLOAT}
        inputs, outputs = (
            [helper.make_tensor_value_info(t.name, types[t.datatype], ["batch", *t.shape[1:]]) for t in specs]
            for specs in (INPUTS, OUTPUTS)
        )
        graph = helper.make_graph(self._nodes, "int8", inputs, outputs, list(self._constants.values()))
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="distillery",
        )

    def _name(self) -> str:
        return f"t{next(self._names)}"

    def _constant(self, value: npt.NDArray[np.generic]) -> str:
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(value, self._name())
        return self._constants[key].name
