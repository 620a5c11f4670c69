"""Static int8 quantisation: the fp32 graph rewritten with QuantizeLinear and DequantizeLinear around each layer.

onnxruntime fuses every `DequantizeLinear, Conv or Gemm, Relu, QuantizeLinear` into one integer kernel. Activations
are uint8, weights int8 with one scale per output unit, biases int32. Two things are special to these graphs: the raw
image is already quantised (scale 1, zero point 0), so no Cast and no QuantizeLinear stand before the first layer; and
every activation is a ReLU's, so its zero point is 0 and only its upper end is calibrated. Max-pooling and reshaping
work on the integers. Names are short and equal constants stored once: in a small convolutional network they would
weigh as much as the weights.
"""

from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from export.graph import OPSET
from serving.model.repository import INPUTS, OUTPUTS

Float = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]


class Layer(NamedTuple):
    """Weight `[out, in]`, of a convolution `[out, in, 3, 3]`; bias `[out]`; whether 2x2 max-pooling follows."""

    weight: Float
    bias: Float
    pool: bool = False


def read_layers(model: onnx.ModelProto) -> list[Layer]:
    """The layers of an fp32 graph as `export.graph` writes it, in order."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    layers: list[Layer] = []
    for node in model.graph.node:
        if node.op_type in {"Conv", "Gemm"}:
            weight = values[node.input[1]]
            # The exporter leaves a bias of zeros away.
            bias = values[node.input[2]] if len(node.input) > 2 else np.zeros(len(weight), np.float32)
            layers.append(Layer(weight, bias))
        elif node.op_type == "MaxPool":
            layers[-1] = layers[-1]._replace(pool=True)
    return layers


def hidden_activations(model: onnx.ModelProto, images: Images) -> list[Float]:
    """What each ReLU of the fp32 graph answers to `images`: `float32 [N, units]` or `[N, channels, height, width]`."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = [node.output[0] for node in model.graph.node if node.op_type == "Relu"]
    for name in names:
        watched.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    answers: list[Float] = session.run(names, {"image": images})
    return answers


def quantise(layers: Sequence[Layer], ceilings: Sequence[float], *, weight_bits: int = 8) -> onnx.ModelProto:
    """Build the int8 graph.

    `ceilings` holds, for each layer but the last, the activation that becomes 255; larger ones saturate.
    `weight_bits` of 7 leaves headroom for x86 processors without VNNI, whose 16-bit sums would saturate.
    """
    graph, limit = _Graph(), 2 ** (weight_bits - 1) - 1
    scale, zero = np.float32(1), np.uint8(0)
    shape = [-1, 1, 28, 28] if layers[0].weight.ndim == 4 else [-1, 784]
    values = graph.node("Reshape", "image", np.array(shape))
    for index, (weight, bias, pool) in enumerate(layers):
        rows = weight.reshape(len(weight), -1)
        weight_scale = np.maximum(np.abs(rows).max(axis=1), 1e-8).astype(np.float32) / np.float32(limit)
        bias_scale = (scale * weight_scale).astype(np.float32)
        weight_q = np.clip(np.rint(rows / weight_scale[:, None]), -limit, limit).astype(np.int8)
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
    return graph.model()


class _Graph:
    """Nodes and constants, named as they come."""

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
        """Add a node and return its output; an input that is no name is a constant."""
        names = [each if isinstance(each, str) else self._constant(np.asarray(each)) for each in inputs]
        output = output or self._name()
        self._nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def dequantised(self, values: npt.NDArray[np.signedinteger], scales: Float) -> str:
        """Rows of integers with a scale each; onnxruntime fuses only where the zero points are spelt out."""
        return self.node("DequantizeLinear", values, scales, np.zeros(len(values), values.dtype), axis=0)

    def model(self) -> onnx.ModelProto:
        types = {"UINT8": onnx.TensorProto.UINT8, "FP32": onnx.TensorProto.FLOAT}
        inputs, outputs = (
            [helper.make_tensor_value_info(t.name, types[t.datatype], ["batch", *t.shape[1:]]) for t in specs]
            for specs in (INPUTS, OUTPUTS)
        )
        graph = helper.make_graph(self._nodes, "int8", inputs, outputs, list(self._constants.values()))
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10, producer_name="distillery"
        )

    def _name(self) -> str:
        return f"t{next(self._names)}"

    def _constant(self, value: npt.NDArray[np.generic]) -> str:
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(value, self._name())
        return self._constants[key].name
