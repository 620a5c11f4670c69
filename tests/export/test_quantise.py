"""int8 computes what quantised numbers give, in one integer kernel a layer, and stays close to the network."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.calibrate import choose_quantisation
from export.errors import ExportError
from export.fold import fold
from export.graph import to_onnx
from export.parity import answer, open_session
from export.pipeline import Digits, Source, export_checkpoint
from export.quantise import Layer, hidden_activations, quantise, read_layers
from tests.support.networks import card, used
from training.model.checkpoint import load_checkpoint, save_checkpoint
from training.recipe.schema import Architecture

STUDENT = Architecture(hidden=[48, 48])


def test_quantised_arithmetic_is_exact_where_nothing_is_rounded() -> None:
    rng = np.random.default_rng(0)
    # Integer weights with a largest of 127 in each row are their own int8 values; so are integer activations to 255.
    first = rng.integers(-2, 3, (12, 784)).astype(np.float32)
    first[:, 0] = 127
    second = rng.integers(-5, 6, (10, 12)).astype(np.float32)
    second[:, 0] = 127
    biases = [rng.integers(-9, 10, n).astype(np.float32) for n in (12, 10)]
    images = np.zeros((5, 28, 28), np.uint8)
    images[:, 3, :20] = rng.integers(0, 6, (5, 20))
    images[:, 0, 0] = 1
    hidden = np.maximum(images.reshape(5, 784) @ first.T + biases[0], 0)
    assert hidden.max() <= 255
    model = quantise([Layer(first, biases[0]), Layer(second, biases[1])], [255.0])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(answer(session, images), hidden @ second.T + biases[1])


def test_quantised_convolutions_are_exact_where_nothing_is_rounded() -> None:
    rng = np.random.default_rng(0)
    kernel = rng.integers(-2, 3, (3, 1, 3, 3)).astype(np.float32)
    kernel[:, 0, 0, 0] = 127
    last = rng.integers(-5, 6, (10, 3 * 14 * 14)).astype(np.float32)
    last[:, 0] = 127
    biases = [rng.integers(-9, 10, n).astype(np.float32) for n in (3, 10)]
    images = (rng.random((5, 28, 28)) < 0.1).astype(np.uint8)
    maps = torch.nn.functional.conv2d(
        torch.from_numpy(images[:, None]).float(), torch.from_numpy(kernel), padding=1
    )
    hidden = torch.relu(maps + torch.from_numpy(biases[0])[:, None, None])
    assert hidden.max() <= 255
    pooled = torch.nn.functional.max_pool2d(hidden, 2).flatten(1).numpy()
    model = quantise([Layer(kernel, biases[0], pool=True), Layer(last, biases[1])], [255.0])
    np.testing.assert_array_equal(
        answer(open_session(model.SerializeToString()), images), pooled @ last.T + biases[1]
    )


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
    architecture: Architecture, kernels: list[str], export_digits: Digits, tmp_path: Path
) -> None:
    fp32 = to_onnx(fold(used(architecture)), architecture)
    ceilings = [float(a.max()) for a in hidden_activations(fp32, export_digits.calibration)]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(
        quantise(read_layers(fp32), ceilings).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    optimised = onnx.load(tmp_path / "optimised.onnx")
    assert [node.op_type for node in optimised.graph.node] == kernels


@pytest.mark.parametrize("stages", [[[8], [16], [24]], [[8], [16, 16], [16]]], ids=str)
def test_a_small_convolutional_network_is_a_small_file(
    stages: list[list[int]], export_digits: Digits
) -> None:
    architecture = Architecture(stages=stages)
    network = used(architecture)
    chosen = choose_quantisation(
        to_onnx(fold(network), architecture),
        export_digits.calibration,
        export_digits.validation,
        export_digits.validation_labels,
    )
    weights = sum(tensor.numel() for tensor in network.state_dict().values() if tensor.dim() > 1)
    assert chosen.model.ByteSize() < 1.5 * weights < 16_000
    assert chosen.validation_agreement >= 0.9


def test_int8_is_chosen_on_validation_and_stays_close(
    trained: dict[str, Path], export_digits: Digits
) -> None:
    fp32 = to_onnx(fold(load_checkpoint(trained["student"]).network), STUDENT)
    chosen = choose_quantisation(
        fp32, export_digits.calibration, export_digits.validation, export_digits.validation_labels
    )
    assert chosen.validation_agreement >= 0.97
    assert chosen.weight_bits in (7, 8)


def test_an_ensemble_is_not_quantised(export_digits: Digits, tmp_path: Path) -> None:
    architecture = Architecture(hidden=[8], members=2)
    checkpoint = tmp_path / "checkpoint.safetensors"
    save_checkpoint(checkpoint, used(architecture).state_dict(), card("cnn", architecture))
    models = tmp_path / "models"
    with pytest.raises(ExportError, match=r"cnn is an ensemble, 2 × 784-8-10, and only single networks"):
        export_checkpoint(Source("cnn", checkpoint), export_digits, models_dir=models, int8=True)
    assert not list(models.iterdir())
    (entry,) = export_checkpoint(Source("cnn", checkpoint), export_digits, models_dir=models)
    assert entry.manifest.architecture == "2 × 784-8-10"
    assert entry.manifest.parity.disagreements == 0
