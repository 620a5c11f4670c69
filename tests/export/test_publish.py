"""`export_checkpoint` publishes verified files with manifest, documents and Triton configuration, or nothing."""

import json
import os
from pathlib import Path
from shutil import copyfile, copytree

import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export import ExportError, pipeline
from export.fold import fold
from export.graph import to_onnx
from export.parity import measure_parity, network_logits
from export.pipeline import Source, export_checkpoint, find_current
from export.publish import publish
from export.splits import Splits
from serving.model.repository import load_model, load_repository
from serving.model.session import open_session
from tests.support.training.networks import metadata, used
from training.evaluation.calibration import fit_temperature
from training.model.checkpoint import load_checkpoint, save_checkpoint
from training.recipe.schema import Architecture
from training.report.report import CARD, REPORT

STUDENT = Architecture(hidden=[48, 48])


def test_fp32_and_int8_are_published_with_what_was_measured_of_each_file(
    trained: dict[str, Path], model_repository: Path, splits: Splits
) -> None:
    entries = load_repository(model_repository)
    fp32, int8 = entries["student"].manifest, entries["student-int8"].manifest
    assert fp32.architecture == "784-48-48-10"
    assert fp32.parameters == 784 * 48 + 48 * 48 + 48 * 10 + 48 * 2 + 10 + 48 * 4
    assert int8.size_bytes < fp32.size_bytes / 2
    assert fp32.parity.disagreements == 0
    assert 0 < fp32.parity.largest_difference <= 1e-4
    images, labels = splits.test.images.numpy(), splits.test.labels.numpy()
    exact = network_logits(load_checkpoint(trained["student"]).network, images)
    for name in ("student", "student-int8"):
        manifest, session = entries[name].manifest, open_session(entries[name].path)
        (logits,) = session.run(["logits"], {"image": images})
        assert manifest.test_errors == (logits.argmax(1) != labels).sum()
        found = measure_parity(logits, exact)
        assert (manifest.parity.images, manifest.parity.disagreements) == (200, found.disagreements)
        assert manifest.parity.largest_difference == pytest.approx(found.largest_difference, abs=1e-5)
    assert fp32.checkpoint_sha256 == int8.checkpoint_sha256
    assert (
        json.loads((model_repository / "student" / "1" / "manifest.json").read_text())["recipe"]["seed"] == 0
    )


def test_each_file_carries_its_own_calibration_temperature(model_repository: Path, splits: Splits) -> None:
    entries = load_repository(model_repository)
    found = set()
    for name in ("student", "student-int8"):
        manifest, session = entries[name].manifest, open_session(entries[name].path)
        (logits,) = session.run(["logits"], {"image": splits.validation.images.numpy()})
        fitted = fit_temperature(torch.from_numpy(logits), splits.validation.labels)
        assert manifest.calibration_temperature == pytest.approx(fitted, abs=1e-4)
        kept = session.get_modelmeta().custom_metadata_map
        rule = manifest.acceptance
        assert rule
        assert kept == {
            "calibration_temperature": str(manifest.calibration_temperature),
            "acceptance_power": str(rule.power),
            "acceptance_threshold": str(rule.threshold),
        }
        found.add(manifest.calibration_temperature)
    assert len(found) == 2
    assert found != {1.0}


def test_a_failed_export_leaves_the_repository_as_it_was(
    trained: dict[str, Path],
    model_repository: Path,
    splits: Splits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Source("student", trained["student"])
    copytree(model_repository / "student", tmp_path / "student")
    before = load_repository(tmp_path)
    # The graph of another network in the place of this one's.
    other = to_onnx(fold(load_checkpoint(trained["student-alone"]).network))
    monkeypatch.setattr(pipeline, "to_onnx", lambda *_: other)
    with pytest.raises(ExportError, match="does not compute what its network computes"):
        export_checkpoint(source, splits, models_dir=tmp_path)
    assert load_repository(tmp_path) == before
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["student"]


def test_an_ensemble_is_exported_but_not_quantised(splits: Splits, tmp_path: Path) -> None:
    architecture = Architecture(hidden=[8], members=2)
    checkpoint = tmp_path / "checkpoint.safetensors"
    save_checkpoint(checkpoint, used(architecture).state_dict(), metadata("cnn", architecture))
    models = tmp_path / "models"
    with pytest.raises(ExportError, match=r"cnn is an ensemble, 2 × 784-8-10, and only single networks"):
        export_checkpoint(Source("cnn", checkpoint), splits, models_dir=models, int8=True)
    assert not models.exists()
    (entry,) = export_checkpoint(Source("cnn", checkpoint), splits, models_dir=models)
    assert entry.manifest.architecture == "2 × 784-8-10"
    assert entry.manifest.parity.disagreements == 0


def test_a_model_is_current_until_checkpoint_version_or_file_changes(
    trained: dict[str, Path], model_repository: Path, tmp_path: Path
) -> None:
    copytree(model_repository / "student", tmp_path / "student")
    folder = tmp_path / "student" / "1"
    assert find_current(tmp_path, "student", 1, trained["student"]) == load_model(folder)
    assert find_current(tmp_path, "student", 1, trained["teacher"]) is None
    assert find_current(tmp_path, "student", 2, trained["student"]) is None
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"!")
    assert find_current(tmp_path, "student", 1, trained["student"]) is None


def test_a_report_is_published_with_its_model(
    trained: dict[str, Path], model_repository: Path, splits: Splits, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "run" / "model.safetensors"
    checkpoint.parent.mkdir()
    copyfile(trained["student"], checkpoint)
    source, models = Source("student", checkpoint), tmp_path / "models"
    copytree(
        model_repository / "student", models / "student"
    )  # exported from the same checkpoint without a report
    entry = load_model(models / "student" / "1")
    assert entry.manifest.headline is None
    assert entry.card is None
    assert find_current(models, "student", 1, checkpoint) == entry

    figures = {"test_errors": 85, "ece": 0.012}
    checkpoint.with_name(CARD).write_text("# student\n")
    checkpoint.with_name(REPORT).write_text(json.dumps({"headline": figures, "name": "student"}))
    assert find_current(models, "student", 1, checkpoint) is None
    for entry in export_checkpoint(source, splits, models_dir=models, int8=True):
        assert entry.manifest.headline == figures
        rule, card = entry.manifest.acceptance, entry.card
        assert rule
        assert card
        assert card.startswith("# student\n\n## Acceptance\n")
        assert f"confidence is at least {rule.threshold:.4f}" in card
        assert (
            f"{rule.accepted / rule.digits:.1%} of them ({rule.accepted:,}), with {rule.errors:,} errors"
            in card
        )
        assert all(kind in card for kind in rule.outliers_accepted)
        assert (entry.path.parent / REPORT).read_bytes() == checkpoint.with_name(REPORT).read_bytes()
        assert find_current(models, entry.name, 1, checkpoint) == entry

    checkpoint.with_name(CARD).write_text("# another student\n")
    assert find_current(models, "student", 1, checkpoint) is None
    checkpoint.with_name(REPORT).write_text('{"headline": {"test_errors": "many"}}')
    with pytest.raises(ExportError, match=r"report.json has no headline.*distillery-train report"):
        export_checkpoint(source, splits, models_dir=models)


def test_a_manifest_of_an_older_export_is_read(model_repository: Path, tmp_path: Path) -> None:
    copytree(model_repository / "student", tmp_path / "student")
    path = tmp_path / "student" / "1" / "manifest.json"
    fields = json.loads(path.read_text())
    del fields["headline"], fields["calibration_temperature"]
    path.write_text(json.dumps(fields))
    assert load_model(path.parent).manifest.calibration_temperature is None


def test_other_users_can_read_a_published_model_as_far_as_the_umask_allows(
    model_repository: Path, tmp_path: Path
) -> None:
    """A container serves it as a user of its own."""
    published = load_repository(model_repository)["student"]
    for umask, others in ((0o022, 0o5), (0o077, 0)):
        before = os.umask(umask)
        root = tmp_path / f"{umask:o}"
        publish(root, published.manifest, published.path.read_bytes(), tmp_path / "checkpoint")
        os.umask(before)
        folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
        files = [path for path in root.rglob("*") if path.is_file()]
        assert {path.stat().st_mode & 0o7 for path in folders} == {others}
        assert {path.stat().st_mode & 0o7 for path in files} == {others & 0o4}


def test_triton_parses_the_configuration(model_repository: Path) -> None:
    for name, entry in load_repository(model_repository).items():
        text = (model_repository / name / "config.pbtxt").read_text()
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        assert config.name == name
        assert config.backend == "onnxruntime"
        (image,) = config.input
        assert (image.name, list(image.dims)) == ("image", [28, 28])
        assert image.data_type == model_config_pb2.TYPE_UINT8
        assert [(o.name, list(o.dims)) for o in config.output] == [
            ("logits", [10]),
            ("probabilities", [10]),
            ("outlier", [1]),
        ]
        assert (model_repository / name / entry.manifest.version / config.default_model_filename).is_file()


@pytest.mark.parametrize("name", ["Student", "../teacher", "a b", "", "-x"])
def test_a_model_name_unfit_for_a_url_is_rejected(name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="use lower-case letters"):
        Source(name, tmp_path)


def test_a_run_without_networks_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no trained network in .*make train"):
        Source.of_run(tmp_path)
