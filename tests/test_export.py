"""The exported file answers as the network does, holds the nodes we mean, and is refused when it does not."""

import copy
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import card
from google.protobuf import text_format
from onnx import numpy_helper
from tritonclient.grpc import model_config_pb2

from export import pipeline
from export.calibrate import choose_quantisation
from export.errors import ExportError
from export.fold import fold
from export.graph import to_onnx
from export.parity import answer, measure_parity, open_session, require_parity
from export.pipeline import Digits, Source, current, export_checkpoint
from export.quantise import Layer, hidden_activations, quantise, read_layers
from serving.repository import load_model, load_repository
from training.checkpoint import load_checkpoint, save_checkpoint
from training.network import Classifier, Network, build, normalise
from training.recipe import Architecture

STUDENT = Architecture(hidden=[48, 48])
SHAPES = [
    Architecture(),
    Architecture(hidden=[16]),
    Architecture(hidden=[20, 20, 20], norm=False),
    Architecture(stages=[[4], [6, 6]]),
    Architecture(stages=[[4], [6], [8]], hidden=[12], norm=False),
    Architecture(hidden=[16], members=2),
    Architecture(stages=[[4, 4], [6]], hidden=[12], members=3),
]


@pytest.fixture(scope="module")
def network(trained: dict[str, Path]) -> Classifier:
    return load_checkpoint(trained["student"]).network


@pytest.fixture(scope="module")
def fp32(network: Classifier) -> onnx.ModelProto:
    return to_onnx(fold(network), STUDENT)


def write(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def used(architecture: Architecture) -> Network:
    """A network of that shape with BatchNorm as training leaves it, not as it starts."""
    torch.manual_seed(0)
    network = build(architecture, dropout=0.5).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.3, 3)
            torch.nn.init.normal_(module.bias)
        elif isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_normal_(module.weight)
    return network.requires_grad_(requires_grad=False)


@pytest.mark.parametrize("architecture", SHAPES, ids=str)
def test_every_shape_is_exported_exactly(
    architecture: Architecture, export_digits: Digits, tmp_path: Path
) -> None:
    network = used(architecture)
    images = torch.randint(0, 256, (64, 28, 28), dtype=torch.uint8)
    logits, probabilities = fold(network)(images)
    exact = copy.deepcopy(network).double()(normalise(images).double())
    assert exact.std() > 0.01
    torch.testing.assert_close(logits.double(), exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(probabilities.double(), exact.softmax(1), atol=1e-5, rtol=1e-5)
    graph = write(to_onnx(fold(network), architecture), tmp_path)
    assert require_parity(network, graph, export_digits.test).disagreements == 0


def test_the_graph_is_the_one_we_mean(fp32: onnx.ModelProto) -> None:
    assert [n.op_type for n in fp32.graph.node] == [
        "Cast", "Reshape", "Gemm", "Relu", "Gemm", "Relu", "Gemm", "Softmax",
    ]  # fmt: skip
    (image,) = fp32.graph.input
    assert image.name == "image"
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert image.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [output.name for output in fp32.graph.output] == ["logits", "probabilities"]


def test_the_graph_of_a_convolutional_ensemble() -> None:
    architecture = Architecture(stages=[[4, 4], [6]], hidden=[12], members=2)
    graph = to_onnx(fold(used(architecture)), architecture).graph
    member = [
        "Conv", "Relu", "Conv", "Relu", "MaxPool", "Conv", "Relu", "MaxPool", "Reshape", "Gemm", "Relu", "Gemm",
    ]  # fmt: skip
    assert [n.op_type for n in graph.node] == [
        "Cast", "Reshape", *member, *member, "Unsqueeze", "Unsqueeze", "Concat", "LogSoftmax", "ReduceMean", "Softmax",
    ]  # fmt: skip


def test_a_graph_of_another_shape_is_refused(network: Classifier) -> None:
    with pytest.raises(ExportError, match=r"the graph has nodes .*'Cast'.* expected .*'Conv'"):
        to_onnx(fold(network), Architecture(stages=[[48]]))


def test_the_file_does_not_tell_where_it_was_made(fp32: onnx.ModelProto) -> None:
    text = fp32.SerializeToString()
    for trace in (b"site-packages", b".py", str(Path.cwd()).encode()):
        assert trace not in text


def test_parity_holds_for_every_digit(
    network: Classifier, fp32: onnx.ModelProto, export_digits: Digits, tmp_path: Path
) -> None:
    parity = require_parity(network, write(fp32, tmp_path), export_digits.test)
    assert parity.images == 200
    assert parity.disagreements == 0
    assert 0 < parity.largest_difference <= 1e-4


@pytest.mark.parametrize("change", [1e-2, float("nan")])
def test_a_graph_that_answers_otherwise_is_refused(
    change: float, network: Classifier, fp32: onnx.ModelProto, export_digits: Digits, tmp_path: Path
) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(fp32)
    (bias,) = (tensor for tensor in other.graph.initializer if list(tensor.dims) == [10])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(change), bias.name))
    with pytest.raises(ExportError, match=r"does not answer as its network.*nothing was published"):
        require_parity(network, write(other, tmp_path), export_digits.test)


def test_a_refused_export_leaves_the_repository_as_it_was(
    trained: dict[str, Path], export_digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source("student", trained["student"])
    export_checkpoint(source, export_digits, models_dir=tmp_path)
    before = load_repository(tmp_path)
    # The graph of another network in the place of this one's.
    other = to_onnx(fold(load_checkpoint(trained["student-alone"]).network), STUDENT)
    monkeypatch.setattr(pipeline, "to_onnx", lambda *_: other)
    with pytest.raises(ExportError):
        export_checkpoint(source, export_digits, models_dir=tmp_path)
    assert load_repository(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


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


def test_int8_is_chosen_on_validation_and_stays_close(fp32: onnx.ModelProto, export_digits: Digits) -> None:
    chosen = choose_quantisation(
        fp32, export_digits.calibration, export_digits.validation, export_digits.validation_labels
    )
    assert chosen.validation_agreement >= 0.97
    assert chosen.weight_bits in (7, 8)


def test_publishing(trained: dict[str, Path], export_digits: Digits, tmp_path: Path) -> None:
    entries = export_checkpoint(
        Source("student", trained["student"]), export_digits, models_dir=tmp_path, int8=True
    )
    assert [entry.name for entry in entries] == ["student", "student-int8"]
    fp32, int8 = (entry.manifest for entry in entries)
    assert fp32.architecture == "784-48-48-10"
    assert fp32.parameters == 784 * 48 + 48 * 48 + 48 * 10 + 48 * 2 + 10 + 48 * 4
    assert int8.size_bytes < fp32.size_bytes / 2
    network = load_checkpoint(trained["student"]).network
    for entry in entries:
        digits = answer(open_session(entry.path), export_digits.test).argmax(1)
        assert entry.manifest.test_errors == (digits != export_digits.test_labels).sum()
        assert entry.manifest.parity == measure_parity(network, entry.path, export_digits.test)
    assert fp32.checkpoint_sha256 == int8.checkpoint_sha256
    assert json.loads((tmp_path / "student" / "1" / "manifest.json").read_text())["recipe"]["seed"] == 0


def test_an_unchanged_model_is_recognised(
    trained: dict[str, Path], export_digits: Digits, tmp_path: Path
) -> None:
    export_checkpoint(Source("student", trained["student"]), export_digits, models_dir=tmp_path)
    assert current(tmp_path, "student", 1, trained["student"]) == load_model(tmp_path / "student" / "1")
    assert current(tmp_path, "student", 1, trained["teacher"]) is None
    assert current(tmp_path, "student", 2, trained["student"]) is None
    with (tmp_path / "student" / "1" / "model.onnx").open("ab") as file:
        file.write(b"!")
    assert current(tmp_path, "student", 1, trained["student"]) is None


def test_triton_reads_the_configuration(model_repository: Path) -> None:
    for name, entry in load_repository(model_repository).items():
        text = (model_repository / name / "config.pbtxt").read_text()
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        assert config.name == name
        assert config.backend == "onnxruntime"
        (image,) = config.input
        assert (image.name, list(image.dims)) == ("image", [28, 28])
        assert image.data_type == model_config_pb2.TYPE_UINT8
        assert [(o.name, list(o.dims)) for o in config.output] == [("logits", [10]), ("probabilities", [10])]
        assert (model_repository / name / entry.manifest.version / config.default_model_filename).is_file()


@pytest.mark.parametrize("name", ["Student", "../teacher", "a b", "", "-x"])
def test_a_name_that_cannot_travel_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="use lower-case letters"):
        Source(name, tmp_path)


def test_a_run_without_networks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no trained network in .*make train"):
        Source.of_run(tmp_path)


def test_every_batch_size_gives_the_same_answer(
    fp32: onnx.ModelProto, export_digits: Digits, tmp_path: Path
) -> None:
    session = open_session(write(fp32, tmp_path))
    whole = answer(session, export_digits.test)
    for size in (1, 2, 7):
        parts = [
            session.run(["logits"], {"image": export_digits.test[i : i + size]})[0]
            for i in range(0, 28, size)
        ]
        np.testing.assert_allclose(np.concatenate(parts), whole[:28], atol=1e-4)
