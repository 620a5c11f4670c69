"""Files with anything that `export` does not write are rejected before onnxruntime reads them."""

import random
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving.model.graph_check import OPERATORS, GraphError, check_graph
from serving.model.repository import (
    INPUTS,
    OUTLIER,
    OUTPUTS,
    Manifest,
    RepositoryError,
    file_sha256,
    load_repository,
)
from serving.model.wire_format import MAX_FIELDS

SPECS = (INPUTS, (*OUTPUTS, OUTLIER))


@pytest.fixture(scope="module")
def content(model_repository: Path) -> bytes:
    return (model_repository / "student/1/model.onnx").read_bytes()


@pytest.fixture
def model(content: bytes) -> onnx.ModelProto:
    return onnx.load_from_string(content)


def error_of(model: onnx.ModelProto | bytes) -> str:
    with pytest.raises(GraphError) as caught:
        check_graph(model if isinstance(model, bytes) else model.SerializeToString(), *SPECS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_exported_file_passes(model_repository: Path) -> None:
    for name in ("student", "student-int8", "teacher"):
        check_graph((model_repository / name / "1/model.onnx").read_bytes(), *SPECS)


def test_other_versions_are_rejected(model: onnx.ModelProto) -> None:
    model.ir_version = 11
    assert error_of(model) == "IR version 11, expected 10"
    model.ir_version = 10
    model.opset_import[0].version = 21
    assert error_of(model) == "operator sets ai.onnx 21, expected ai.onnx 20 alone"
    del model.opset_import[:]
    assert error_of(model) == "operator sets missing, expected ai.onnx 20 alone"


def test_operators_of_other_domains_and_unknown_operators_are_rejected(model: onnx.ModelProto) -> None:
    model.graph.node[2].op_type = "Loop"
    assert error_of(model).startswith("node 2: operator 'Loop', expected one of Cast, Concat, ")
    model.graph.node[2].domain = "evil"
    assert error_of(model).startswith("node 2: operator Loop of domain 'evil'")
    model.opset_import.append(helper.make_opsetid("evil", 1))
    assert error_of(model) == "operator sets ai.onnx 20, evil 1, expected ai.onnx 20 alone"


def test_external_data_is_rejected(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "../../../../etc/shadow")
    assert error_of(model) == ("model.graph.initializer[0] has external data: its values are in another file")
    del tensor.external_data[:]
    assert "external data" in error_of(model)  # by its location alone


def test_subgraphs_functions_and_further_parts_are_rejected(content: bytes) -> None:
    graph = helper.make_graph([], "inner", [], [])
    changes: list[tuple[Callable[[onnx.ModelProto], object], str]] = [
        (lambda m: m.graph.node[0].attribute.append(helper.make_attribute("body", graph)), "a subgraph"),
        (lambda m: m.graph.node[0].attribute.append(helper.make_attribute("all", [graph])), "subgraphs"),
        (
            lambda m: m.graph.node[0].attribute.append(
                helper.make_attribute("value", numpy_helper.from_array(np.zeros(1)))
            ),
            "a tensor",
        ),
        (
            lambda m: m.functions.append(helper.make_function("f", "F", [], [], [], m.opset_import)),
            "functions",
        ),
        (lambda m: m.training_info.add(), "training information"),
        (lambda m: m.graph.sparse_initializer.add(), "sparse initializers"),
        (lambda m: m.graph.quantization_annotation.add(), "the unknown field 14"),
        (lambda m: m.graph.initializer[0].float_data.append(1), "the unknown field 4"),
    ]
    for change, what in changes:
        changed = onnx.load_from_string(content)
        change(changed)
        assert f" has {what}" in error_of(changed)


def test_initializers_have_exactly_the_bytes_of_their_shape(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    dims = list(tensor.dims)
    changes: list[tuple[list[int], int, str]] = [
        ([1 << 15, 1 << 15], TensorProto.FLOAT, "bytes, expected 4,294,967,296 for the shape"),
        ([-1, *dims], TensorProto.FLOAT, "expected at most 8 sizes of 1 to 1,048,576"),
        ([0], TensorProto.FLOAT, "expected at most 8 sizes"),
        ([1 << 40], TensorProto.FLOAT, "expected at most 8 sizes"),
        ([1] * 9, TensorProto.FLOAT, "expected at most 8 sizes"),
        (dims, TensorProto.INT8, "bytes, expected"),
        (dims, TensorProto.STRING, "data type 8, expected one of"),
    ]
    for shape, kind, message in changes:
        tensor.dims[:] = shape
        tensor.data_type = kind
        assert error_of(model).startswith(f"initializer {tensor.name!r}: ")
        assert message in error_of(model)


def test_other_inputs_and_outputs_are_rejected(content: bytes) -> None:
    changes: list[tuple[Callable[[onnx.ModelProto], object], str]] = [
        (lambda m: m.graph.input.append(m.graph.input[0]), "inputs [('image', 2, (-1, 28, 28)), ('image'"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 1), "inputs [('image', 1,"),
        (lambda m: m.graph.output.pop(), "outputs [('logits', 1, (-1, 10)), ('probabilities', 1, (-1, 10))]"),
        (lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[1], "dim_value", 11), "(-1, 11)"),
    ]
    for change, message in changes:
        changed = onnx.load_from_string(content)
        change(changed)
        assert message in error_of(changed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "IR version None, expected 10"),
        (b"\x08", "model.ir_version is cut off"),
        (b"\x08\x0a\x08\x0b", "model.ir_version occurs twice"),
        (b"\x0a\x01\x0a", "model.ir_version has wire type 2, expected 0"),
        (b"\x08" + b"\xff" * 10, "model.ir_version has an integer of more than 64 bits"),
        (b"\x12\x7fonnx", "model.producer_name is cut off"),
        (b"\x12\x01\xff", "model.producer_name is not UTF-8"),
        (b"\x00\x00", "model has the unknown field 0"),
        (b"\x0b\x0c", "model.ir_version has wire type 3, expected 0"),  # a group
        (b"\x42\x00" * (MAX_FIELDS + 1), "the file has more than 100,000 fields"),
        (b"\x08\x0a\x42\x02\x10\x14", "it has no graph"),
    ],
)
def test_what_is_no_model_is_rejected(content: bytes, message: str) -> None:
    assert error_of(content) == message


def test_mutated_files_pass_or_are_rejected_and_what_passes_is_what_onnx_reads(content: bytes) -> None:
    """The two parsers agree on a file that passes: nothing that is not checked here reaches onnxruntime."""
    generator = random.Random(0)  # noqa: S311
    model = onnx.load_from_string(content)
    small = onnx.ModelProto()
    small.CopyFrom(model)
    for tensor in small.graph.initializer:
        tensor.dims[:] = [1] * len(tensor.dims)
        tensor.raw_data = tensor.raw_data[: 8 if tensor.data_type == TensorProto.INT64 else 4]
    seed = small.SerializeToString()
    check_graph(seed, *SPECS)
    passed = 0
    for _ in range(2000):
        mutated = bytearray(seed)
        for _ in range(generator.choice((1, 1, 2, 8))):
            place = generator.randrange(len(mutated))
            change = generator.randrange(4)
            if change == 0:
                mutated[place] = generator.randrange(256)
            elif change == 1:
                mutated[place] ^= 1 << generator.randrange(8)
            elif change == 2:
                del mutated[place : place + generator.randrange(1, 9)]
            else:
                mutated[place:place] = generator.randbytes(generator.randrange(1, 9))
        try:
            check_graph(bytes(mutated), *SPECS)
        except GraphError:
            continue
        passed += 1
        read = onnx.load_from_string(bytes(mutated))
        assert (read.ir_version, [o.version for o in read.opset_import], len(read.functions)) == (10, [20], 0)
        assert {node.op_type for node in read.graph.node} <= OPERATORS
        assert not any(tensor.external_data for tensor in read.graph.initializer)
        assert not any(each.HasField("g") for node in read.graph.node for each in node.attribute)
    assert 50 < passed < 1950


def test_a_repository_with_such_a_file_is_rejected_in_one_line(
    one_model: Path, tmp_path: Path, model: onnx.ModelProto
) -> None:
    repository = Path(copytree(one_model, tmp_path / "models"))
    folder = repository / "student/1"
    model.graph.node[2].op_type = "Loop"
    onnx.save(model, folder / "model.onnx")
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_text(
        manifest.model_copy(update={"sha256": file_sha256(folder / "model.onnx")}).model_dump_json()
    )
    with pytest.raises(RepositoryError) as caught:
        load_repository(repository)
    message = str(caught.value)
    assert message.startswith(
        f"{folder}/model.onnx is not a graph that this service loads: node 2: operator 'Loop'"
    )
    assert message.endswith("; export the model again")


def test_a_file_that_is_too_large_is_rejected_unread(one_model: Path, tmp_path: Path) -> None:
    repository = Path(copytree(one_model, tmp_path / "models"))
    with (repository / "student/1/model.onnx").open("r+b") as file:
        file.truncate(1 << 40)  # sparse: takes no space
    with pytest.raises(RepositoryError, match=r"student/1/model.onnx has 1,099,511,627,776 bytes, more than"):
        load_repository(repository)
