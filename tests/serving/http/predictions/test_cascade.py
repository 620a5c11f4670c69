"""A cascade in the service: like any other model over every protocol, and each image says which model predicted."""

import io
import json
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from serving.codecs.schemas import PredictAnswer, ReadAnswer
from serving.model.repository import load_repository
from serving.model.session import Outputs, Session
from tests.support.cascade import middle_threshold
from tests.support.requests.grpc_calls import image_input
from tests.support.requests.tensors import binary, split, tensor
from tests.support.service import Service, eventually, failed_start, running_service
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.numpy()


@pytest.fixture(scope="module")
def members(cascade_repository: Path) -> dict[str, Outputs]:
    entries = load_repository(cascade_repository)
    return {name: Session(entries[name].content).run(DIGITS) for name in ("student", "teacher")}


@pytest.fixture(scope="module")
def repository(
    cascade_repository: Path, members: dict[str, Outputs], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A repository whose cascade escalates half of the digits."""
    folder = Path(shutil.copytree(cascade_repository, tmp_path_factory.mktemp("cascade") / "models"))
    path = folder / "cascade" / "1" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["cascade"]["threshold"] = middle_threshold(members["student"])
    path.write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def escalated(members: dict[str, Outputs]) -> list[bool]:
    """Whether the teacher predicts each of the digits."""
    student = members["student"]
    found: list[bool] = (student.probabilities.max(axis=1) < middle_threshold(student)).tolist()
    assert 20 < sum(found) < len(found) - 20
    return found


@pytest.fixture(scope="module")
def service(repository: Path) -> Iterator[Service]:
    with running_service(
        repository, "--api-servers", "2", "--max-images", "200", "--grpc-port", "0"
    ) as service:
        yield service


def predict(service: Service, model: str = "cascade") -> list[dict[str, Any]]:
    answer = httpx.post(f"{service.url}/predict/{model}", json={"images": DIGITS.tolist()})
    assert answer.status_code == 200, answer.text
    PredictAnswer.model_validate_json(answer.content, strict=True)
    found: list[dict[str, Any]] = answer.json()["predictions"]
    return found


def check(found: list[dict[str, Any]], members: dict[str, Outputs], escalated: list[bool]) -> None:
    """Check that each image has the prediction of the model that it names."""
    assert [one["model"] for one in found] == [("student", "teacher")[teachers] for teachers in escalated]
    for index, one in enumerate(found):
        expected = members[one["model"]]
        assert expected.confidence
        assert expected.accepted
        assert one["digit"] == expected.digits[index]
        assert one["accepted"] == expected.accepted[index]
        assert one["confidence"] == pytest.approx(expected.confidence[index], abs=1e-4)
        assert one["probabilities"] == pytest.approx(expected.probabilities[index].tolist(), abs=1e-4)


def test_each_image_has_the_prediction_of_the_model_that_it_names(
    service: Service, members: dict[str, Outputs], escalated: list[bool]
) -> None:
    check(predict(service), members, escalated)


def test_a_single_image_is_predicted_by_one_of_the_two(service: Service, escalated: list[bool]) -> None:
    for index in (escalated.index(True), escalated.index(False)):
        answer = httpx.post(f"{service.url}/predict/cascade", json={"image": DIGITS[index].tolist()}).json()
        assert (answer["model"], answer["version"]) == ("cascade", "1")
        [one] = answer["predictions"]
        assert one["model"] == ("student", "teacher")[escalated[index]]
        timing = answer["timing"]
        stages = timing["decode_ms"] + timing["queue_ms"] + timing["inference_ms"]
        assert 0 < timing["inference_ms"] <= stages <= timing["total_ms"] + 0.003  # each is truncated


def test_other_models_do_not_name_a_model_for_each_image(service: Service) -> None:
    assert all("model" not in one for one in predict(service, "student"))


def test_the_models_run_in_workers_as_well(
    repository: Path, members: dict[str, Outputs], escalated: list[bool]
) -> None:
    flags = ("--api-servers", "1", "--max-images", "200", "--executor", "workers")
    with running_service(repository, *flags) as service:
        assert len(service.children()) == 3  # none for the cascade
        check(predict(service), members, escalated)


def test_images_and_escalated_images_are_counted(service: Service, escalated: list[bool]) -> None:
    def counted(model: str) -> tuple[float, float]:
        text = httpx.get(f"{service.url}/metrics").text
        found = {
            sample.name.removeprefix("distillery_"): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.labels.get("model") == model
            and sample.name in {"distillery_images_total", "distillery_escalated_images_total"}
        }
        return found["images_total"], found["escalated_images_total"]

    before, others = counted("cascade"), counted("teacher")
    predict(service)
    expected = before[0] + len(DIGITS), before[1] + sum(escalated)
    eventually(lambda: counted("cascade") == expected)
    assert counted("teacher") == others  # its runs are counted, its requests are its own


def test_its_description_has_the_rule(service: Service, repository: Path) -> None:
    manifest = httpx.get(f"{service.url}/models/cascade").json()
    assert manifest["cascade"] == json.loads((repository / "cascade/1/manifest.json").read_text())["cascade"]
    assert "# cascade" in httpx.get(f"{service.url}/models/cascade/card").text
    listed = [one["name"] for one in httpx.get(f"{service.url}/models").json()["models"]]
    assert listed == ["cascade", "student", "teacher"]


def test_clients_of_the_open_inference_protocol_see_a_model(service: Service, escalated: list[bool]) -> None:
    url = f"{service.url}/v2/models/cascade"
    metadata = httpx.get(url).json()
    assert metadata["platform"] == "ensemble"
    assert [one["name"] for one in metadata["outputs"]][-1] == "escalated"
    assert httpx.get(f"{url}/ready").json() == {"name": "cascade", "ready": True}
    assert httpx.get(f"{url}/config").json()["output"][-1] == {
        "name": "escalated", "data_type": "TYPE_BOOL", "dims": [1]
    }  # fmt: skip
    document: dict[str, Any] = {"inputs": [tensor(DIGITS, data=DIGITS.tolist())]}
    answer = httpx.post(f"{url}/infer", json=document).json()
    found = {one["name"]: one for one in answer["outputs"]}
    assert list(found) == ["logits", "probabilities", "confidence", "accepted", "escalated"]
    assert found["escalated"]["data"] == escalated
    headers, body = binary(DIGITS, outputs=[{"name": "escalated", "parameters": {"binary_data": True}}])
    _, blobs = split(httpx.post(f"{url}/infer", content=body, headers=headers))
    assert np.frombuffer(blobs["escalated"], np.bool_).tolist() == escalated
    statistics = httpx.get(f"{url}/stats").json()["model_stats"][0]
    assert statistics["inference_count"] >= 2 * len(DIGITS)


def test_triton_clients_see_a_model_over_grpc(service: Service, escalated: list[bool]) -> None:
    with triton.InferenceServerClient(service.grpc) as client:
        assert client.get_model_metadata("cascade").platform == "ensemble"
        found = client.infer("cascade", [image_input(DIGITS)])
        assert found.as_numpy("escalated")[:, 0].tolist() == escalated
        wanted = [triton.InferRequestedOutput("escalated")]
        with pytest.raises(InferenceServerException, match="no output 'escalated': only cascades have it"):
            client.infer("student", [image_input(DIGITS[:1])], outputs=wanted)


def test_a_number_is_read(service: Service) -> None:
    ink = np.pad(np.concatenate([DIGITS[0], DIGITS[40], DIGITS[80]], axis=1), 8)
    picture = io.BytesIO()
    Image.fromarray(255 - ink).resize((ink.shape[1] * 4, ink.shape[0] * 4)).save(picture, "PNG")
    headers = {"Content-Type": "image/png"}
    answer = httpx.post(f"{service.url}/read/cascade", content=picture.getvalue(), headers=headers)
    found = ReadAnswer.model_validate_json(answer.content, strict=True)
    assert len(found.number) == 3
    assert {one.model for one in found.digits} <= {"student", "teacher"}


def test_what_is_not_accepted_is_named_where_it_is_an_error(repository: Path) -> None:
    with running_service(repository, "--api-servers", "1", "--reject-unaccepted") as service:
        blank = np.zeros((28, 28), int).tolist()
        answer = httpx.post(f"{service.url}/predict/cascade", json={"image": blank})
        assert answer.status_code == 422
        assert "image 1 of 1 is not accepted: its confidence is" in answer.text


def test_a_reload_exchanges_the_rule_between_requests(
    repository: Path, tmp_path: Path, members: dict[str, Outputs], escalated: list[bool]
) -> None:
    folder = Path(shutil.copytree(repository, tmp_path / "models"))
    path = folder / "cascade" / "1" / "manifest.json"
    manifest = json.loads(path.read_text())
    nothing = [False] * len(DIGITS)
    flags = ("--api-servers", "2", "--max-images", "200")
    with running_service(folder, *flags) as service, ThreadPoolExecutor(1) as thread:

        def rule() -> dict[str, Any]:
            found: dict[str, Any] = httpx.get(f"{service.url}/models/cascade").json()["cascade"]
            return found

        def change(threshold: float, student: str) -> None:
            changed = manifest["cascade"] | {"threshold": threshold}
            changed["student"] = changed["student"] | {"sha256": student}
            path.write_text(json.dumps(manifest | {"cascade": changed}))
            os.kill(service.process.pid, signal.SIGHUP)

        sha256 = manifest["cascade"]["student"]["sha256"]
        change(0.0, sha256)
        changing = thread.submit(eventually, lambda: rule()["threshold"] == 0)
        while not changing.done():
            found = predict(service)
            check(found, members, escalated if any(one["model"] == "teacher" for one in found) else nothing)
        changing.result()
        eventually(lambda: all(one["model"] == "student" for _ in range(5) for one in predict(service)))
        change(0.5, "0" * 64)
        index = f"{service.url}/v2/repository/index"
        eventually(lambda: "holds for no other file" in httpx.post(index).text)
        assert rule()["threshold"] == 0
        check(predict(service), members, nothing)


def test_a_service_does_not_start_with_another_student(repository: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(repository, tmp_path / "models"))
    path = folder / "cascade" / "1" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["cascade"]["student"]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    message = failed_start(folder)
    assert "the threshold was chosen for 0000" in message
    assert "run distillery-export cascade --name cascade again" in message
