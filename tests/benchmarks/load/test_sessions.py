"""`distillery-bench session`, and the digits and requests of all benchmarks."""

import io
import json
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from benchmarks.__main__ import COMMANDS
from benchmarks.commands.seeds import models_of
from benchmarks.errors import BenchmarkError
from benchmarks.load.digits import load_digits
from benchmarks.load.sessions import measure_sessions
from benchmarks.load.workloads import service_workload
from benchmarks.results.models import model_facts, select_models
from distillery import main
from serving.model.session import open_session


def test_the_digits_are_real_and_their_classes_repeat_in_order(model_repository: Path) -> None:
    digits = load_digits()
    assert digits.shape == (100, 28, 28)
    session = open_session(select_models(model_repository)["teacher"].path)
    (probabilities,) = session.run(["probabilities"], {"image": digits})
    right = probabilities.argmax(axis=1) == np.arange(100) % 10
    assert right.mean() > 0.6  # the network was trained on 500 other digits; 0.86 to 0.88 over seeds


def test_every_model_is_measured_with_every_batch_and_number_of_threads(model_repository: Path) -> None:
    models = {name: entry.path for name, entry in select_models(model_repository).items()}
    data = measure_sessions(models, threads=[1, 2], batches=[1, 150], rounds=2, seconds=0.8)
    measured = [(row["threads"], row["batch"], row["model"]) for row in data["rows"]]
    assert sorted(measured) == sorted((t, b, m) for t in (1, 2) for b in (1, 150) for m in models)
    for row in data["rows"]:
        assert row["runs"] == sum(row["histogram"]["counts"]) >= 20
        assert 0 < row["p50_us"] <= row["p90_us"] <= row["p99_us"]
        assert len(row["rounds_p50_us"]) == 2
        assert row["images_per_s"] <= row["batch"] * 1e6 * row["runs"] / (row["p50_us"] * row["runs"] / 2)
        assert (row["speedup"] is None) == (row["model"] == "teacher")
        if row["model"] != "teacher":
            assert row["speedup"]["rounds"] == 2


def test_without_a_teacher_there_is_no_speedup(model_repository: Path) -> None:
    path = select_models(model_repository, ["student"])["student"].path
    data = measure_sessions({"student": path}, batches=[1], rounds=1, seconds=0.05)
    assert [row["speedup"] for row in data["rows"]] == [None]


def test_the_command_prints_a_table_and_last_one_line_of_json(
    model_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--models-dir", str(model_repository), "--models", "teacher,student", "--batches", "1,8"]
    flags += ["--rounds", "2", "--seconds", "0.2", "--results-dir", str(tmp_path)]
    assert main("distillery-bench", COMMANDS, arguments=["session", *flags]) == 0
    printed = capsys.readouterr().out
    summary = json.loads(printed.splitlines()[-1])
    kept = json.loads(Path(summary["result"]).read_text())
    assert [(row["model"], row["batch"]) for row in summary["rows"]] == [
        ("teacher", 1), ("student", 1), ("teacher", 8), ("student", 8),
    ]  # fmt: skip
    assert kept["data"]["models"] == model_facts(select_models(model_repository, ["teacher", "student"]))
    assert kept["data"]["rows"][0]["histogram"]["counts"]
    assert "× teacher" in printed


def test_the_models_of_a_recipe_are_in_its_order_each_followed_by_its_int8_export(
    demo_repository: Path,
) -> None:
    models = ["teacher", "student-alone", "student", "student-int8", "fast", "fast-int8"]
    assert models_of("quick", demo_repository) == models


def test_an_unknown_model_is_an_error_with_the_known_ones(model_repository: Path) -> None:
    with pytest.raises(BenchmarkError, match="there is no model 'pupil'; known: student, "):
        select_models(model_repository, ["pupil", "student"])


@pytest.mark.parametrize("body", ["json", "png", "json-64"])
def test_requests_are_complete_and_contain_the_digits(body: str) -> None:
    digits = load_digits()
    workload = service_workload("http://127.0.0.1:81/", "teacher", body)  # type: ignore[arg-type]
    assert urlsplit(workload.url).path == "/predict/teacher"
    assert workload.images_per_request == (64 if body == "json-64" else 1)
    for number, request in enumerate(workload.requests):
        head, _, content = request.partition(b"\r\n\r\n")
        first, *headers = head.decode().split("\r\n")
        assert first == "POST /predict/teacher HTTP/1.1"
        assert f"Content-Length: {len(content)}" in headers
        if body == "png":
            found = np.asarray(Image.open(io.BytesIO(content)))[None]
        else:
            document = json.loads(content)
            found = np.array(document["images"] if body == "json-64" else [document["image"]])
        np.testing.assert_array_equal(found, workload.groups[number])
    np.testing.assert_array_equal(workload.groups[0][0], digits[0])
