"""The exported file answers as the network does, holds the nodes we mean, and is refused when it does not."""

import copy
import json
from pathlib import Path
from shutil import copyfile, copytree

import numpy as np
import onnx
import pytest
import torch
from google.protobuf import text_format
from onnx import numpy_helper
from tritonclient.grpc import model_config_pb2

from distillery import main
from export import pipeline
from export.__main__ import Export
from export.errors import ExportError
from export.fold import fold
from export.graph import to_onnx
from export.parity import answer, measure_parity, open_session, require_parity
from export.pipeline import Digits, Source, current, export_checkpoint
from serving.model.repository import load_model, load_repository, read_card
from tests.support.networks import used
from training.evaluation.calibration import fit_temperature
from training.model.checkpoint import load_checkpoint
from training.model.network import Classifier, normalise
from training.recipe.schema import Architecture
from training.report.report import CARD, REPORT

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


def test_a_report_is_published_with_its_model(
    trained: dict[str, Path], export_digits: Digits, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "run" / "model.safetensors"
    checkpoint.parent.mkdir()
    copyfile(trained["student"], checkpoint)
    source, models = Source("student", checkpoint), tmp_path / "models"
    (entry,) = export_checkpoint(source, export_digits, models_dir=models)
    assert entry.manifest.headline is None
    assert read_card(entry) is None
    assert current(models, "student", 1, checkpoint) == entry

    figures = {"test_errors": 85, "ece": 0.012}
    checkpoint.with_name(CARD).write_text("# student\n")
    checkpoint.with_name(REPORT).write_text(json.dumps({"headline": figures, "name": "student"}))
    assert current(models, "student", 1, checkpoint) is None
    entries = export_checkpoint(source, export_digits, models_dir=models, int8=True)
    for entry in entries:
        assert entry.manifest.headline == figures
        assert read_card(entry) == "# student\n"
        assert (entry.path.parent / REPORT).read_bytes() == checkpoint.with_name(REPORT).read_bytes()
        assert current(models, entry.name, 1, checkpoint) == entry

    checkpoint.with_name(CARD).write_text("# another student\n")
    assert current(models, "student", 1, checkpoint) is None
    checkpoint.with_name(REPORT).write_text('{"headline": {"test_errors": "many"}}')
    with pytest.raises(ExportError, match=r"report.json has no headline.*distillery-train report"):
        export_checkpoint(source, export_digits, models_dir=models)


def test_the_calibration_temperature_is_that_of_the_file(
    model_repository: Path, export_digits: Digits
) -> None:
    entries = load_repository(model_repository)
    labels = torch.from_numpy(export_digits.validation_labels)
    found = set()
    for name in ("student", "student-int8"):
        manifest, session = entries[name].manifest, open_session(entries[name].path)
        logits = torch.from_numpy(answer(session, export_digits.validation))
        assert manifest.calibration_temperature == pytest.approx(fit_temperature(logits, labels), abs=1e-6)
        kept = session.get_modelmeta().custom_metadata_map
        assert kept == {"calibration_temperature": str(manifest.calibration_temperature)}
        found.add(manifest.calibration_temperature)
    assert len(found) == 2
    assert found != {1.0}


def test_a_manifest_of_an_older_export_is_read(model_repository: Path, tmp_path: Path) -> None:
    copytree(model_repository / "student", tmp_path / "student")
    path = tmp_path / "student" / "1" / "manifest.json"
    fields = json.loads(path.read_text())
    del fields["headline"], fields["calibration_temperature"]
    path.write_text(json.dumps(fields))
    assert load_model(path.parent).manifest.calibration_temperature is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--int8=student,fast"], "--int8 fast: there is no such model; those to export: student, teacher"),
        (["--int8=cnn"], "--int8 cnn: there is no such model"),
    ],
)
def test_int8_of_a_model_that_is_not_there(
    flags: list[str],
    message: str,
    trained: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("student", "teacher"):
        folder = tmp_path / f"{name}-0"
        folder.mkdir()
        copyfile(trained[name], folder / "model.safetensors")
        (tmp_path / name).symlink_to(folder.name)
    flags = [f"--run-dir={tmp_path}", f"--models-dir={tmp_path / 'models'}", *flags]
    assert main("distillery-export", {"export": Export}, default="export", arguments=flags) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_the_usual_int8_model_may_be_missing(trained: dict[str, Path]) -> None:
    Export(checkpoint=trained["teacher"], name="mine")._require_known([Source("mine", trained["teacher"])])


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
