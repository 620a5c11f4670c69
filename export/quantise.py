"""Static int8 quantisation: the fp32 MLP rewritten with QuantizeLinear and DequantizeLinear around each Gemm.

onnxruntime fuses every `DequantizeLinear, Gemm, Relu, QuantizeLinear` into one integer kernel. Activations
are uint8, weights int8 with one scale per output unit, biases int32. Two things are special to these graphs:
the raw image is already quantised (scale 1, zero point 0), so no Cast and no QuantizeLinear stand before the
first layer; and every activation is a ReLU's, so its zero point is 0 and only its upper end is calibrated.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from export.graph import OPSET
from serving.repository import INPUTS, OUTPUTS

Float = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]
Layer = tuple[Float, Float]
"""Weight `[out, in]` and bias `[out]`."""


def affine_layers(model: onnx.ModelProto) -> list[Layer]:
    """The weights and biases of an fp32 MLP graph as `export.graph` writes it, in order."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    layers = []
    for gemm in (node for node in model.graph.node if node.op_type == "Gemm"):
        weight = values[gemm.input[1]]
        # The exporter leaves a bias of zeros away.
        bias = values[gemm.input[2]] if len(gemm.input) > 2 else np.zeros(len(weight), np.float32)
        layers.append((weight, bias))
    return layers


def hidden_activations(model: onnx.ModelProto, images: Images) -> list[Float]:
    """What each ReLU of the fp32 graph answers to `images`: one `float32 [N, units]` per hidden layer."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = [node.output[0] for node in model.graph.node if node.op_type == "Relu"]
    for name in names:
        watched.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    answers: list[Float] = session.run(names, {"image": images})
    return answers


def quantise(layers: Sequence[Layer], ceilings: Sequence[float], *, weight_bits: int = 8) -> onnx.ModelProto:
    """Build the int8 graph of an MLP.

    `ceilings` holds, for each hidden layer, the activation that becomes 255; larger ones saturate.
    `weight_bits` of 7 leaves headroom for x86 processors without VNNI, whose 16-bit sums would saturate.
    """
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(name: str, value: npt.ArrayLike) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def dequantised(name: str, values: npt.NDArray[np.signedinteger], scales: Float) -> str:
        """Rows of integers with a scale each; onnxruntime fuses only where the zero points are spelt out."""
        zeros = np.zeros(len(values), values.dtype)
        inputs = [
            constant(f"{name}_q", values),
            constant(f"{name}_scale", scales),
            constant(f"{name}_zero", zeros),
        ]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [name], axis=0))
        return name

    zero = constant("zero_point", np.uint8(0))
    nodes.append(helper.make_node("Reshape", ["image", constant("rows", np.array([-1, 784]))], ["pixels"]))
    quantised, scale = "pixels", np.float32(1)
    limit = 2 ** (weight_bits - 1) - 1
    for index, (weight, bias) in enumerate(layers):
        last = index == len(layers) - 1
        here = f"layer{index}"
        weight_scale = np.maximum(np.abs(weight).max(axis=1), 1e-8).astype(np.float32) / np.float32(limit)
        bias_scale = (scale * weight_scale).astype(np.float32)
        weight_q = np.clip(np.rint(weight / weight_scale[:, None]), -limit, limit).astype(np.int8)
        bias_q = np.clip(np.rint(bias.astype(np.float64) / bias_scale), -(2**31), 2**31 - 1).astype(np.int32)
        inputs = [quantised, constant(f"{here}.input_scale", scale), zero]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{here}.input"]))
        gemm = [
            f"{here}.input",
            dequantised(f"{here}.weight", weight_q, weight_scale),
            dequantised(f"{here}.bias", bias_q, bias_scale),
        ]
        nodes.append(helper.make_node("Gemm", gemm, ["logits" if last else f"{here}.sum"], transB=1))
        if not last:
            scale = np.float32(max(ceilings[index], 1e-8) / 255)
            quantised = f"{here}.output"
            nodes.append(helper.make_node("Relu", [f"{here}.sum"], [f"{here}.relu"]))
            inputs = [f"{here}.relu", constant(f"{here}.output_scale", scale), zero]
            nodes.append(helper.make_node("QuantizeLinear", inputs, [quantised]))
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    types = {"UINT8": onnx.TensorProto.UINT8, "FP32": onnx.TensorProto.FLOAT}
    graph_inputs, graph_outputs = (
        [helper.make_tensor_value_info(t.name, types[t.datatype], ["batch", *t.shape[1:]]) for t in specs]
        for specs in (INPUTS, OUTPUTS)
    )
    graph = helper.make_graph(nodes, "int8", graph_inputs, graph_outputs, constants)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10, producer_name="distillery"
    )
