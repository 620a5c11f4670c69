"""`distillery-bench replay`: a log as the load of a real service, and as a regression test of real models."""

import json
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest

import distillery
from benchmarks.commands.replay import Replay
from benchmarks.results.files import read_result
from distillery.request_log.distinct import content_hash, is_held_out
from export.pipeline import Source, export_checkpoint
from export.splits import Splits
from serving.model.session import Session
from tests.support.logged_images import write_log
from tests.support.training.samples import sample_training

DIGITS, _ = sample_training()
IMAGES = np.roll(DIGITS.images.numpy()[:200], 4, axis=2)
"""Moved to the right: the models disagree on some of them."""
LABELS = DIGITS.labels.tolist()[:200]


def bench(*flags: str | Path) -> int:
    return distillery.main("bench", {"replay": Replay}, arguments=["replay", *map(str, flags)])


@pytest.fixture(scope="module")
def repository(
    one_model: Path, trained: dict[str, Path], splits: Splits, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A repository with two versions of the student, the second of which is a smaller network."""
    folder = tmp_path_factory.mktemp("repository") / "models"
    copytree(one_model, folder)
    export_checkpoint(Source("student", trained["fast"]), splits, models_dir=folder, version=2)
    return folder


def predicted(repository: Path, version: int) -> list[int]:
    return Session(repository / f"student/{version}/model.onnx").run(IMAGES).digits


def test_a_log_is_sent_to_a_service_and_every_request_answered(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path / "log", IMAGES[:60], interval=0.02, rate=0.5)
    write_log(tmp_path / "log", IMAGES[60:80], interval=0.02, first_id=100, per_request=4, protocol="v2")
    flags = (f"--log={tmp_path / 'log'}", f"--models-dir={repository}", f"--results-dir={tmp_path}")
    assert bench(*flags, "--speed=2") == 0
    output = capsys.readouterr().out
    (path,) = tmp_path.glob("replay-*.json")
    load = read_result(path)["data"]["load"]
    assert load["recorded"] == 65
    assert load["requests"] == 125  # each of the 60 twice
    assert load["images"] == 140
    assert (load["failed"], load["statuses"]) == (0, {"200": 125})
    assert 1.03 < load["seconds"] < 1.05  # from request 0 to request 104, every 10 ms
    assert 0 < load["p50_ms"] <= load["p99_ms"] <= load["p999_ms"]
    assert "offered/s" in output
    assert json.loads(output.splitlines()[-1])["failed"] == 0


def test_requests_for_a_model_that_is_not_served_fail_and_are_counted(
    repository: Path, tmp_path: Path
) -> None:
    write_log(tmp_path / "log", IMAGES[:5], model="missing")
    flags = (f"--log={tmp_path / 'log'}", f"--models-dir={repository}", f"--results-dir={tmp_path}")
    assert bench(*flags) == 0
    assert bench(*flags, "--model=student") == 0
    first, second = (read_result(path)["data"]["load"] for path in sorted(tmp_path.glob("replay-*.json")))
    assert sorted([first["failed"], second["failed"]]) == [0, 5]


def test_a_significantly_worse_candidate_is_rejected_and_a_better_one_is_not(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = predicted(repository, 1), predicted(repository, 2)
    changed = sum(old != new for old, new in zip(before, after, strict=True))
    assert changed > 6  # so that p < 0.05 if all changes are errors
    flags = (f"--models-dir={repository}", f"--results-dir={tmp_path}")
    for labels, status in ((before, 1), (after, 0)):
        write_log(tmp_path / f"log{status}", IMAGES, labels)
        log = f"--log={tmp_path / f'log{status}'}"
        assert bench(log, *flags, "--stable=student/1", "--candidate=student/2") == status
        error = capsys.readouterr().err
        assert (f"student/2: {changed} errors instead of 0 on 200 labelled images (p = " in error) == bool(
            status
        )
    log = f"--log={tmp_path / 'log0'}"
    limited = (log, *flags, "--stable=student/1", "--candidate=student/2")
    assert bench(*limited, "--max-changed=0.001") == 1
    assert "of the digits change, 0.10% at most (--max-changed)" in capsys.readouterr().err
    assert bench(*limited, f"--max-changed={changed / 200}") == 0


def test_a_candidate_that_learned_from_a_log_is_compared_on_held_out_images(
    repository: Path, tmp_path: Path
) -> None:
    copytree(repository, tmp_path / "models")
    path = tmp_path / "models/student/2/manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["dataset"]["request-log"] = "0" * 64
    path.write_text(json.dumps(manifest))
    write_log(tmp_path / "log", IMAGES, LABELS)
    flags = (f"--models-dir={tmp_path / 'models'}", f"--results-dir={tmp_path}")
    assert bench(f"--log={tmp_path / 'log'}", *flags, "--stable=student/1", "--candidate=student/2") in {0, 1}
    (path,) = tmp_path.glob("replay-*.json")
    found = read_result(path)["data"]["comparison"]
    assert found["held_out_only"]
    assert found["accuracy"]["images"] == sum(is_held_out(content_hash(image)) for image in IMAGES)


def test_two_versions_of_a_running_service_are_compared(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path / "log", IMAGES, LABELS)
    flags = (f"--log={tmp_path / 'log'}", f"--results-dir={tmp_path}")
    from tests.support.service import running_service  # noqa: PLC0415

    with running_service(repository, "--api-servers", "1") as service:
        url = f"--url={service.url}"
        assert bench(*flags, url, "--stable=student/2", "--candidate=student/2") == 0
        assert bench(*flags, url, "--stable=student/9", "--candidate=student/2") == 1
    assert "--stable student/9: " in capsys.readouterr().err
    (path,) = tmp_path.glob("replay-*.json")
    assert read_result(path)["data"]["comparison"]["changes"]["images"] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--candidate=student/2",), "name the model to compare with --stable"),
        (("--stable=student/1",), "name the model to compare with --candidate"),
        (
            ("--stable=student", "--candidate=student/2"),
            "--stable student: name a model and its version, such as student/2",
        ),
        (("--stable=student/1", "--candidate=student/3"), "known: student/1, student/2"),
        (
            ("--stable=student/1", "--candidate=student/2"),
            "send feedback to the service, or use --max-changed",
        ),
    ],
)
def test_errors_name_the_value_and_the_fix(
    flags: tuple[str, ...],
    message: str,
    repository: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_log(tmp_path / "log", IMAGES[:5])
    common = (f"--log={tmp_path / 'log'}", f"--models-dir={repository}", f"--results-dir={tmp_path}")
    assert bench(*common, *flags) == 1
    assert message in capsys.readouterr().err
