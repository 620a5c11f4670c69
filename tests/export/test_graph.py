"""An exported graph computes what its network computes, has exactly the expected nodes, and is checked for both."""

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export import ExportError
from export.fold import fold
from export.graph import Graph, to_onnx
from export.parity import measure_parity, network_logits, require_parity, require_parity_on_extremes
from export.splits import Splits
from serving.model.graph_check import check_graph
from serving.model.repository import INPUTS, OUTPUTS
from tests.support.training.networks import used
from training.model.checkpoint import load_checkpoint
from training.model.network import Classifier, Network, normalise
from training.recipe.schema import Architecture

CONVOLUTIONAL_ENSEMBLE = Architecture(stages=[[4, 4], [6]], hidden=[12], members=2)
SHAPES = [
    CONVOLUTIONAL_ENSEMBLE,  # the first, as in the test of its nodes: pytest then exports it once for both
    Architecture(),
    Architecture(hidden=[16]),
    Architecture(hidden=[20, 20, 20], norm=False),
    Architecture(stages=[[4], [6, 6]]),
    Architecture(stages=[[4], [6], [8]], hidden=[12], norm=False),
    Architecture(hidden=[16], members=2),
]


Exported = tuple[Network, Graph]


@pytest.fixture(scope="module")
def exported(request: pytest.FixtureRequest) -> Exported:
    """A network of the shape that the test is parametrised with, and its graph; leave both as they are."""
    network = used(request.param)
    return network, to_onnx(fold(network))


@pytest.fixture(scope="module")
def network(trained: dict[str, Path]) -> Classifier:
    return load_checkpoint(trained["student"]).network


@pytest.fixture(scope="module")
def fp32(network: Classifier) -> Graph:
    return to_onnx(fold(network))


@pytest.mark.parametrize("exported", SHAPES, indirect=True, ids=str)
def test_every_shape_is_exported_exactly(exported: Exported, splits: Splits) -> None:
    network, graph = exported
    images = torch.randint(0, 256, (64, 28, 28), dtype=torch.uint8)
    logits, probabilities = map(torch.from_numpy, graph.run(["logits", "probabilities"], images.numpy()))
    exact = copy.deepcopy(network).double()(normalise(images).double())
    assert exact.std() > 0.01
    torch.testing.assert_close(logits.double(), exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(probabilities.double(), exact.softmax(1), atol=1e-5, rtol=1e-5)
    digits = splits.test.images.numpy()
    require_parity(measure_parity(graph.logits(digits), network_logits(network, digits)))
    require_parity_on_extremes(graph, network)
    check_graph(graph.content, INPUTS, OUTPUTS)  # the service loads it


def test_a_perceptron_has_the_expected_nodes_inputs_and_outputs(fp32: Graph) -> None:
    graph = fp32.model.graph
    assert [node.op_type for node in graph.node] == [
        "Cast", "Reshape", "Gemm", "Relu", "Gemm", "Relu", "Gemm", "Softmax",
    ]  # fmt: skip
    (image,) = graph.input
    assert image.name == "image"
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert image.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [output.name for output in graph.output] == ["logits", "probabilities"]


@pytest.mark.parametrize("exported", [CONVOLUTIONAL_ENSEMBLE], indirect=True, ids=str)
def test_a_convolutional_ensemble_has_the_expected_nodes(exported: Exported) -> None:
    graph = exported[1].model.graph
    member = [
        "Conv", "Relu", "Conv", "Relu", "MaxPool", "Conv", "Relu", "MaxPool", "Reshape", "Gemm", "Relu", "Gemm",
    ]  # fmt: skip
    assert [node.op_type for node in graph.node] == [
        "Cast", "Reshape", *member, "Unsqueeze", *member, "Unsqueeze", "Concat", "LogSoftmax", "ReduceMean", "Softmax",
    ]  # fmt: skip


def test_the_file_contains_no_paths_of_the_machine_that_made_it(fp32: Graph) -> None:
    for trace in (b"site-packages", b".py", str(Path.cwd()).encode()):
        assert trace not in fp32.content


def test_parity_counts_disagreements_and_the_largest_difference() -> None:
    exact = np.array([[4.0, 1.0], [0.0, 0.5], [1.0, 0.0]])
    found = np.array([[4.0, 1.4], [0.0, 0.25], [1.0, 2.0]], np.float32)
    parity = measure_parity(found, exact)
    assert (parity.images, parity.disagreements) == (3, 1)
    assert parity.largest_difference == 2.0
    assert measure_parity(found[:1], exact[:1]).largest_difference == pytest.approx(0.1)  # relative to 4


@pytest.mark.parametrize("change", [1e-2, float("nan")])
def test_a_graph_that_computes_something_else_is_rejected(
    change: float, network: Classifier, fp32: Graph
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(fp32.model)
    (bias,) = (tensor for tensor in model.graph.initializer if list(tensor.dims) == [10])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(change), bias.name))
    with pytest.raises(ExportError, match=r"does not compute what its network.*nothing was published"):
        require_parity_on_extremes(Graph(model), network)


def test_an_image_gets_the_same_logits_in_every_batch_size(fp32: Graph, splits: Splits) -> None:
    images = splits.test.images.numpy()[:28]
    whole = fp32.logits(images)
    for size in (1, 2, 7):
        parts = [fp32.logits(images[i : i + size]) for i in range(0, 28, size)]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)
