"""int8 graphs compute integer arithmetic in one kernel per layer, and stay close to fp32."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.calibrate import choose_quantisation
from export.fold import Layer, fold
from export.graph import to_onnx
from export.quantise import hidden_activations, largest_sum, pair_sums, quantise
from export.splits import Splits
from tests.support.training.networks import used
from training.model.checkpoint import load_checkpoint
from training.recipe.schema import Architecture

STUDENT = Architecture(hidden=[48, 48])


def test_quantised_layers_are_exact_where_nothing_is_rounded() -> None:
    rng = np.random.default_rng(0)
    # Integer weights whose largest pair is 127 are their own int8 values; so are integer activations up to 255.
    first = rng.integers(-2, 3, (12, 784)).astype(np.float32)
    first[:, :2] = 127, 0
    second = rng.integers(-5, 6, (10, 12)).astype(np.float32)
    second[:, :2] = 127, 0
    biases = [rng.integers(-9, 10, n).astype(np.float32) for n in (12, 10)]
    images = np.zeros((5, 28, 28), np.uint8)
    images[:, 3, :20] = rng.integers(0, 6, (5, 20))
    images[:, 0, 0] = 1
    hidden = np.maximum(images.reshape(5, 784) @ first.T + biases[0], 0)
    assert hidden.max() <= 255
    graph = quantise([Layer(first, biases[0]), Layer(second, biases[1])], [255.0])
    np.testing.assert_array_equal(graph.logits(images), hidden @ second.T + biases[1])


def test_quantised_convolutions_are_exact_where_nothing_is_rounded() -> None:
    rng = np.random.default_rng(0)
    kernel = rng.integers(-2, 1, (3, 1, 3, 3)).astype(
        np.float32
    )  # no other positive weight: 127 is the largest pair
    kernel[:, 0, 0, 0] = 127
    last = rng.integers(-5, 6, (10, 3 * 14 * 14)).astype(np.float32)
    last[:, :2] = 127, 0
    biases = [rng.integers(-9, 10, n).astype(np.float32) for n in (3, 10)]
    images = (rng.random((5, 28, 28)) < 0.1).astype(np.uint8)
    maps = torch.nn.functional.conv2d(
        torch.from_numpy(images[:, None]).float(), torch.from_numpy(kernel), padding=1
    )
    hidden = torch.relu(maps + torch.from_numpy(biases[0])[:, None, None])
    assert hidden.max() <= 255
    pooled = torch.nn.functional.max_pool2d(hidden, 2).flatten(1).numpy()
    graph = quantise([Layer(kernel, biases[0], pool=True), Layer(last, biases[1])], [255.0])
    np.testing.assert_array_equal(graph.logits(images), pooled @ last.T + biases[1])


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_no_sum_saturates_where_every_pair_of_weights_is_at_the_limit(batch: int) -> None:
    # x86 without VNNI adds 255 · 64 + 255 · 64 = 32,640 in 16 bits; 8-bit weights of 127 would become 32,767 there.
    weight = np.full((10, 784), 63.5, np.float32)  # rounds to 64; two make 127, so that the scale is 1
    weight[1::2] *= -1
    weight[2:4, ::3] = 0
    graph = quantise([Layer(weight, np.zeros(10, np.float32))], [])
    assert largest_sum(graph) == 255 * 128 <= 32_767
    images = np.full((batch, 28, 28), 255, np.uint8)
    exact = images.reshape(batch, 784).astype(np.int64) @ np.rint(weight).astype(np.int64).T
    np.testing.assert_array_equal(graph.logits(images), exact)


def test_a_trained_network_predicts_as_exact_integer_arithmetic_does(
    trained: dict[str, Path], splits: Splits
) -> None:
    (layers,) = fold(load_checkpoint(trained["student"]).network)
    images, ceilings = splits.test.images.numpy(), [40.0, 40.0]
    values, scale = images.reshape(len(images), 784).astype(np.int64), np.float32(1)
    for number, (weight, bias, _) in enumerate(layers):
        weight_scale = pair_sums(weight).astype(np.float32) / np.float32(127)
        sum_scale = scale * weight_scale
        rounded = np.rint(weight / weight_scale[:, None]).astype(np.int64)
        sums = (values @ rounded.T + np.rint(bias / sum_scale).astype(np.int64)) * sum_scale.astype(float)
        if number < len(ceilings):
            scale = np.float32(ceilings[number] / 255)
            values = np.clip(np.rint(sums / scale), 0, 255).astype(np.int64)
    found = quantise(layers, ceilings).logits(images)
    # One step of one activation: a value between two integers may be rounded either way in float32.
    np.testing.assert_allclose(found, sums, rtol=0, atol=float(scale * np.abs(layers[-1].weight).max()))
    assert (found.argmax(1) == sums.argmax(1)).all()


@pytest.mark.parametrize("shape", [(40, 300), (12, 5, 3, 3)], ids=["connected", "convolutional"])
def test_weights_use_at_least_seven_bits_and_at_most_eight(shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    quantised = weight / (pair_sums(weight).reshape(-1, *[1] * (len(shape) - 1)) / 127)
    largest = np.rint(np.abs(quantised)).reshape(len(weight), -1).max(1)
    assert (largest.min() >= 63) & (largest.max() <= 127)
    assert largest.max() > 70  # where the largest weight has smaller neighbours


def test_no_sum_of_a_convolution_saturates_whatever_the_order_of_its_weights() -> None:
    rng = np.random.default_rng(0)
    kernel = rng.uniform(0, 63.4, (6, 4, 3, 3)).astype(np.float32)
    kernel.reshape(6, -1)[:, [3, 30]] = 63.5
    assert pair_sums(kernel).tolist() == [127] * 6
    assert pair_sums(np.rint(kernel).astype(np.int8)).tolist() == [128] * 6
    assert pair_sums(np.array([[5]], np.int8)).tolist() == [5]  # one input: nothing is added


@pytest.mark.parametrize(
    ("architecture", "kernels"),
    [
        (STUDENT, ["Reshape", "QGemm", "QGemm", "QGemm", "Softmax"]),
        (
            Architecture(stages=[[8], [8, 16]], hidden=[12]),
            [
                "Reshape", "QLinearConv", "MaxPool", "QLinearConv", "QLinearConv", "MaxPool", "Reshape", "QGemm",
                "QGemm", "Softmax",
            ],
        ),
    ],
    ids=["mlp", "convolutional"],
)  # fmt: skip
def test_int8_runs_as_one_integer_kernel_per_layer(
    architecture: Architecture, kernels: list[str], splits: Splits, tmp_path: Path
) -> None:
    members = fold(used(architecture))
    fp32 = to_onnx(members)
    ceilings = [float(a.max()) for a in hidden_activations(fp32, splits.training.images[:50].numpy())]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    int8 = quantise(members[0], ceilings).content
    onnxruntime.InferenceSession(int8, options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx")
    assert [node.op_type for node in optimised.graph.node] == kernels


@pytest.mark.parametrize("stages", [[[8], [16], [24]], [[8], [16, 16], [16]]], ids=str)
def test_a_small_convolutional_network_is_a_small_file(stages: list[list[int]], splits: Splits) -> None:
    architecture = Architecture(stages=stages)
    network = used(architecture)
    members = fold(network)
    fp32 = to_onnx(members)
    ceilings = [float(a.max()) for a in hidden_activations(fp32, splits.training.images[:50].numpy())]
    weights = sum(tensor.numel() for tensor in network.state_dict().values() if tensor.dim() > 1)
    assert len(quantise(members[0], ceilings).content) < 1.5 * weights < 16_000


def test_the_quantisation_with_the_fewest_validation_errors_is_chosen(
    trained: dict[str, Path], splits: Splits
) -> None:
    members = fold(load_checkpoint(trained["student"]).network)
    fp32 = to_onnx(members)
    chosen = choose_quantisation(members[0], fp32, splits)
    digits = chosen.graph.logits(splits.validation.images.numpy()).argmax(1)
    assert chosen.validation_errors == (digits != splits.validation.labels.numpy()).sum()
    assert chosen.validation_agreement >= 0.9  # of 100 digits; 0.97 and more were seen
    described = chosen.describe()
    assert 32_000 < described["largest_16_bit_sum"] <= 32_767
    assert described["percentile"] in {100.0, 99.99, 99.9}
    images = splits.test.images.numpy()
    expected = fp32.logits(images)
    assert np.abs(chosen.graph.logits(images) - expected).mean() < 0.05 * np.abs(expected).max()
