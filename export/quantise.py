"""Static int8 quantisation: the fp32 graph rewritten with QuantizeLinear and DequantizeLinear around each layer.

onnxruntime fuses every `DequantizeLinear, Conv or Gemm, Relu, QuantizeLinear` into one integer kernel. Activations
are uint8, weights int8 with one scale per output unit, biases int32. Two properties of these graphs save nodes: the
raw image is already quantised (scale 1, zero point 0), so the first layer needs neither Cast nor QuantizeLinear; and
every activation follows a ReLU, so its zero point is 0 and only its upper end is calibrated. Max-pooling and reshaping
operate on the integers.

The same file gives the same integers on every processor. x86 processors without VNNI multiply uint8 by int8 with
`vpmaddubsw`, which adds the products of two neighbours in 16 bits and saturates. So each unit's scale is chosen such
that the largest such sum fits: its weights use between 7 and 8 bits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from export.fold import Float, Layer
from export.graph import Graph, GraphBuilder
from serving.model.tensors import Images

MAX_PAIR = 128
"""Largest sum of two neighbouring weights of one sign: 255 · 128 = 32,640, and 16 bits hold up to 32,767."""


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
    graph = GraphBuilder()
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
            _dequantised(graph, weight_q.reshape(weight.shape), weight_scale),
            _dequantised(graph, bias_q, bias_scale),
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
    return graph.build("int8")


def _dequantised(graph: GraphBuilder, values: npt.NDArray[np.signedinteger], scales: Float) -> str:
    """Dequantise rows of integers, one scale each; onnxruntime fuses only if zero points are explicit."""
    return graph.node("DequantizeLinear", values, scales, np.zeros(len(values), values.dtype), axis=0)
