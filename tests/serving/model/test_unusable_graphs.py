"""Graphs that pass the check of their parts and cannot be run are one line at the start, without a traceback."""

from pathlib import Path
from shutil import copytree

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from serving.model.graph_check import GraphError, check_graph
from serving.model.repository import INPUTS, OUTLIER, OUTPUTS, POWER, THRESHOLD
from serving.model.session import Session
from tests.support.repository import publish_graph
from tests.support.service import failed_start

PIXELS = 28 * 28
WEIGHTS = np.zeros((PIXELS, 10), np.float32)


def node(operator: str, inputs: str, output: str, **attributes: object) -> NodeProto:
    return helper.make_node(operator, inputs.split(), [output], **attributes)


def graph(
    nodes: list[NodeProto] | None = None,
    weights: np.ndarray = WEIGHTS,
    shape: tuple[int, ...] = (-1, PIXELS),
    metadata: dict[str, str] | None = None,
) -> bytes:
    """Return a file with the inputs and outputs of a model, which predicts the same for every image."""
    spec = helper.make_tensor_value_info
    outputs = [spec(each.name, TensorProto.FLOAT, ["batch", *each.shape[1:]]) for each in OUTPUTS]
    constants = {"weights": weights, "shape": np.array(shape)}
    default = [
        node("Cast", "image", "floats", to=TensorProto.FLOAT),
        node("Reshape", "floats shape", "rows"),
        node("Gemm", "rows weights", "logits"),
        node("Softmax", "logits", "probabilities"),
    ]
    body = helper.make_graph(
        nodes or default,
        "graph",
        [spec("image", TensorProto.UINT8, ["batch", 28, 28])],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, metadata or {})
    content: bytes = model.SerializeToString()
    check_graph(content, INPUTS, OUTPUTS)
    return content


def test_a_graph_of_the_right_shape_runs() -> None:
    assert (
        Session(graph()).run(np.zeros((3, 28, 28), np.uint8)).probabilities.tolist()
        == [[np.float32(0.1)] * 10] * 3
    )


UNUSABLE = {
    "weights of another shape": (graph(weights=WEIGHTS[:700]), "onnxruntime cannot load it: .*700 and 784"),
    "pixels that are not cast": (
        graph([node("Reshape", "image shape", "rows"), node("Gemm", "rows weights", "logits"),
               node("Softmax", "logits", "probabilities")]),
        r"onnxruntime cannot load it: .*'tensor\(uint8\)' of input parameter \(rows\)",
    ),
    "an input that no node computes": (
        graph([node("Gemm", "rows weights", "logits"), node("Softmax", "logits", "probabilities")]),
        "onnxruntime cannot load it: Invalid model. Node input 'rows' is not a graph input",
    ),
    "an output that no node computes": (
        graph([node("Cast", "image", "floats", to=TensorProto.FLOAT)]),
        r"onnxruntime cannot load it: This is an invalid model. Graph output \(logits\) does not exist",
    ),
    "an unknown attribute": (
        graph([node("Cast", "image", "logits", to=TensorProto.FLOAT, how="well"),
               node("Softmax", "logits", "probabilities")]),
        "onnxruntime cannot load it: .*Unrecognized attribute: how",
    ),
    "nine classes": (
        graph(weights=WEIGHTS[:, :9]),
        r"its output logits has the shape \(1, 9\) for 1 images, expected \(1, 10\)",
    ),
    "batches of one image": (graph(shape=(1, PIXELS)), "a run of 64 images failed: .*Input shape:{64,28,28}"),
    "pairs of images": (
        graph(weights=np.concatenate([WEIGHTS, WEIGHTS]), shape=(-1, 2 * PIXELS)),
        "a run of 1 images failed: .*Input shape:{1,28,28}",
    ),
    "weights that are not finite": (
        graph(weights=np.full_like(WEIGHTS, np.nan)),
        "its output logits contains infinite values or NaN",
    ),
    "a rule without its output": (
        graph(metadata={POWER: "1", THRESHOLD: "0.9"}),
        f"its metadata {POWER} and {THRESHOLD} are 1 and 0.9, expected .* and the output {OUTLIER.name}",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_graph_that_cannot_be_run_is_an_error_of_one_line(
    content: bytes, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(GraphError, match=f"^{message}") as caught:
        Session(content)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # onnxruntime writes messages of its own


@pytest.mark.parametrize("threshold", ["", "high", "nan", "1.5"])
def test_an_invalid_acceptance_rule_is_an_error(one_model: Path, threshold: str) -> None:
    model = onnx.load(one_model / "student/1/model.onnx")
    helper.set_model_props(model, {POWER: "2", THRESHOLD: threshold})
    with pytest.raises(
        GraphError, match=rf"{POWER} and {THRESHOLD} are 2 and {threshold}, expected a number"
    ):
        Session(model.SerializeToString())


@pytest.mark.parametrize(
    "flags", [["--api-servers", "2"], pytest.param(["--executor", "workers"], marks=pytest.mark.slow)]
)
def test_the_service_does_not_start_and_names_model_file_and_fix(
    one_model: Path, tmp_path: Path, flags: list[str]
) -> None:
    models = Path(copytree(one_model, tmp_path / "models"))
    path = publish_graph(models / "student/1", graph(weights=WEIGHTS[:, :9]))
    assert failed_start(models, *flags) == (
        f"distillery-serve: model student: {path} is not a graph that this service runs: its output logits has the "
        "shape (1, 9) for 1 images, expected (1, 10); export the model again\n"
    )
