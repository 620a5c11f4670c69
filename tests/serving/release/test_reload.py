"""What is served changes while the service runs, by SIGHUP, administrators or the watch; or stays, with a reason."""

import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from serving.engine.admission.api_keys import hash_of
from tests.support.requests.connections import post, read_answer
from tests.support.service import Service, eventually, failed_start, running_service
from tests.support.versions import DIGITS, predictions_of, publish, scaled, served, set_policy

ADMIN, READER = {"X-API-Key": "the admin"}, {"X-API-Key": "a reader"}
KEYS = f"""
[[keys]]
name = "admin"
hash = "{hash_of("the admin")}"
scopes = ["infer", "metrics", "admin"]

[[keys]]
name = "reader"
hash = "{hash_of("a reader")}"
"""
BODY = {"images": DIGITS[:4].tolist()}
BOTH = {"student/1": "READY", "student/2": "READY", "teacher/1": "READY"}


@pytest.fixture
def root(two_versions: Path, tmp_path: Path) -> Path:
    """A repository that tests may change: version 1 of the student, and the teacher; version 2 is `newer`."""
    root = Path(shutil.copytree(two_versions, tmp_path / "models"))
    shutil.move(root / "student" / "2", tmp_path / "newer")
    return root


@pytest.fixture
def newer(root: Path) -> Path:
    return root.parent / "newer"


@pytest.fixture
def client(root: Path) -> Iterator[httpx.Client]:
    """Of a service with two processes, as an administrator; its process id is in the header X-Pid."""
    keys = root.parent / "keys.toml"
    keys.write_text(KEYS)
    with running_service(root, "--api-servers", "2", "--api-keys", str(keys)) as service:
        service.output.close()
        with httpx.Client(base_url=service.url, headers=ADMIN, timeout=20) as client:
            client.headers["X-Pid"] = str(service.process.pid)
            yield client


def load(client: httpx.Client, model: str = "student", verb: str = "load") -> httpx.Response:
    return client.post(f"/v2/repository/models/{model}/{verb}")


def index(client: httpx.Client) -> dict[str, str]:
    return served(str(client.base_url), headers=ADMIN)


def versions_answering(url: str, path: str = "/predict/student", **options: object) -> set[str]:
    """Return the versions that answer on connections of their own, which all processes get some of."""
    found = set()
    for _ in range(12):
        answer = httpx.post(f"{url}{path}", json=BODY, timeout=10, **options)  # type: ignore[arg-type]
        assert answer.status_code == 200, answer.text
        found.add(answer.json()["version"])
    return found


def test_a_new_version_is_served_by_all_processes_once_it_is_loaded(
    root: Path, newer: Path, client: httpx.Client
) -> None:
    first, second = predictions_of(root / "student" / "1"), predictions_of(newer)
    publish(root, newer, 2)
    assert first(client.post("/predict/student", json=BODY))  # not before it is asked for
    assert load(client).status_code == 200
    assert second(client.post("/predict/student", json=BODY))
    url = str(client.base_url)
    assert versions_answering(url, headers=ADMIN) == {"2"}
    answer = client.post("/predict/student/versions/1", json=BODY)
    assert answer.status_code == 404
    assert "there is no version '1' of model 'student'; it has 2" in answer.text
    metrics = client.get("/metrics").text
    for version in ("1", "2"):
        assert f'model="student",protocol="rest",status="200",version="{version}"' in metrics


def test_all_versions_that_the_policy_names_are_served_under_their_paths(
    root: Path, newer: Path, client: httpx.Client
) -> None:
    first, second = predictions_of(root / "student" / "1"), predictions_of(newer)
    publish(root, newer, 2)
    set_policy(root, "all { }")
    assert load(client).status_code == 200
    assert index(client) == BOTH
    assert first(client.post("/predict/student/versions/1", json=BODY))
    assert second(client.post("/predict/student/versions/2", json=BODY))
    assert second(client.post("/predict/student", json=BODY))
    for path in ("/v2/models/student", "/v2/models/student/versions/1"):
        assert client.get(path).json()["versions"] == ["1", "2"]
    for version in ("1", "2"):
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": DIGITS[:1].tolist()}
        path = f"/v2/models/student/versions/{version}"
        answer = client.post(f"{path}/infer", json={"inputs": [tensor]}).json()
        assert (answer["model_name"], answer["model_version"]) == ("student", version)
        assert client.get(f"{path}/ready").json() == {"name": "student", "ready": True}
        config = client.get(f"{path}/config").json()
        assert config["version_policy"] == {"all": {}}
    answer = client.get("/v2/models/student/versions/3/ready")
    assert answer.status_code == 404
    assert "it has 1, 2" in answer.json()["error"]


def test_a_kept_connection_gets_the_new_version_and_the_error_of_a_removed_one(
    root: Path, newer: Path, client: httpx.Client
) -> None:
    """On the fast path, whose memory of the route outlasts the version."""
    address = urlsplit(str(client.base_url))
    body = httpx.Request("POST", "http://x", json=BODY).content
    path = "/predict/student/versions/1"
    named, newest = (
        post(one, body, "X-API-Key: the admin", "User-Agent: test") for one in (path, "/predict/student")
    )
    with socket.create_connection((str(address.hostname), address.port or 80), 10) as connection:

        def ask(request: bytes) -> tuple[int, str]:
            connection.sendall(request)
            status, _, answer = read_answer(connection)
            return status, answer["version"] if status == 200 else str(answer)

        for _ in range(3):  # the first passes uvicorn's parser
            assert [ask(named), ask(newest)] == [(200, "1"), (200, "1")]
        publish(root, newer, 2)
        assert load(client).status_code == 200
        for _ in range(3):
            assert ask(newest) == (200, "2")
            status, answer = ask(named)
            assert status == 404
            assert "it has 2" in answer
        set_policy(root, "specific { versions: 1 }")
        assert load(client).status_code == 200
        for _ in range(3):
            assert [ask(named), ask(newest)] == [(200, "1"), (200, "1")]


def test_only_administrators_change_what_is_served(client: httpx.Client) -> None:
    for verb in ("load", "unload"):
        answer = client.post(f"/v2/repository/models/teacher/{verb}", headers=READER)
        assert answer.status_code == 403
        assert "'reader' has not the scope admin" in answer.json()["error"]
        answer = client.post(f"/v2/repository/models/teacher/{verb}", headers={"X-API-Key": "wrong"})
        assert answer.status_code == 401
    assert index(client) == {"student/1": "READY", "teacher/1": "READY"}


def test_an_unloaded_model_is_gone_until_it_is_loaded(client: httpx.Client) -> None:
    assert load(client, "teacher", "unload").status_code == 200
    unloaded = {"student/1": "READY", "teacher/": "UNAVAILABLE unloaded"}
    assert index(client) == unloaded
    assert client.post("/predict/teacher", json=BODY).status_code == 404
    assert load(client, "student").status_code == 200  # of another model
    assert index(client) == unloaded
    os.kill(int(client.headers["X-Pid"]), signal.SIGHUP)
    time.sleep(1)
    assert index(client) == unloaded
    assert load(client, "teacher").status_code == 200
    assert index(client) == {"student/1": "READY", "teacher/1": "READY"}
    assert client.post("/predict/teacher", json=BODY).status_code == 200


@pytest.mark.parametrize(
    ("model", "verb", "status", "message"),
    [
        ("nothing", "load", 404, "there is no model 'nothing' in the repository; this service has"),
        ("nothing", "unload", 404, "there is no model 'nothing'; this service has"),
        ("x" * 5000, "load", 404, "there is no model 'xxx"),
        ("student", "unload", 400, "student is the stable model; name another one"),
    ],
)
def test_an_impossible_change_is_rejected(
    client: httpx.Client, model: str, verb: str, status: int, message: str
) -> None:
    answer = load(client, model, verb)
    assert (answer.status_code, message in answer.json()["error"]) == (status, True), answer.text
    assert index(client) == {"student/1": "READY", "teacher/1": "READY"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no", "not JSON"),
        (b"[]", "expected no body"),
        (b'{"parameters": []}', "expected no body"),
        (b'{"parameters": {"config": "{}"}}', "the parameter 'config' is not supported"),
        (b'{"parameters": {"unload_dependents": true}}', "'unload_dependents' is not supported"),
    ],
)
def test_parameters_that_would_have_no_effect_are_rejected(
    strict_service: Service, content: bytes, message: str
) -> None:
    for verb in ("load", "unload"):
        path = f"{strict_service.url}/v2/repository/models/teacher/{verb}"
        answer = httpx.post(path, content=content, headers={"X-API-Key": "correct horse"})
        assert answer.status_code == 400
        assert message in answer.json()["error"]


def corrupt(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"damaged")


def unread(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"sample"')


@pytest.mark.parametrize(
    ("damage", "message"), [(corrupt, "has SHA-256"), (unread, "manifest.json is invalid")]
)
def test_a_version_whose_files_are_invalid_is_rejected_with_the_reason(
    root: Path, newer: Path, client: httpx.Client, damage: object, message: str
) -> None:
    first = predictions_of(root / "student" / "1")
    damage(publish(root, newer, 2))  # type: ignore[operator]
    answer = load(client)
    assert answer.status_code == 400
    assert "student/2 was not loaded: student/2/" in answer.json()["error"]
    assert message in answer.json()["error"]
    found = index(client)
    assert found.pop("student/2").startswith("UNAVAILABLE student/2/")
    assert found == {"student/1": "READY", "teacher/1": "READY"}
    assert first(client.post("/predict/student", json=BODY))
    shutil.rmtree(root / "student" / "2")
    publish(root, newer, 2)
    assert load(client).status_code == 200
    assert index(client) == {"student/2": "READY", "teacher/1": "READY"}


def test_a_graph_with_other_weights_and_its_hash_is_rejected_by_its_sample(
    root: Path, newer: Path, client: httpx.Client
) -> None:
    first = predictions_of(root / "student" / "1")
    publish(root, newer, 2, content=scaled((newer / "model.onnx").read_bytes()))
    answer = load(client)
    assert answer.status_code == 400
    assert "student/2/model.onnx is not a graph that this service runs: its logits differ" in answer.text
    assert first(client.post("/predict/student", json=BODY))


def test_a_reason_of_any_length_reaches_the_client(root: Path, newer: Path, client: httpx.Client) -> None:
    publish(root, newer, 2, **{f"field_{number}": "x" * 60 for number in range(200)})
    answer = load(client)
    assert answer.status_code == 400
    assert len(answer.json()["error"]) > 10_000
    assert index(client)["student/1"] == "READY"


def test_an_invalid_release_file_changes_nothing(root: Path, newer: Path, client: httpx.Client) -> None:
    publish(root, newer, 2)
    (root / "release.json").write_text('{"stable": "student/9"}')
    answer = load(client)
    assert answer.status_code == 400
    assert "stable: there is no version 9 of student, which has 2" in answer.json()["error"]
    (root / "release.json").write_text("{")
    assert "release.json" in load(client).json()["error"]
    assert index(client) == {"student/1": "READY", "teacher/1": "READY"}


def test_sighup_loads_what_is_new_and_logs_what_it_rejects(root: Path, newer: Path) -> None:
    with running_service(root, "--api-servers", "2") as service:
        corrupt(publish(root, newer, 3))
        publish(root, newer, 2)
        set_policy(root, "all { }")
        for _ in range(20):  # at once, as of a process manager that repeats itself
            service.process.send_signal(signal.SIGHUP)
        eventually(lambda: served(service.url).get("student/2") == "READY")
        assert versions_answering(service.url) == {"2"}
        assert served(service.url)["student/1"] == "READY"
        errors = service.end()[1]
    assert "student/3 is not served: student/3/model.onnx has SHA-256" in errors
    assert "reload: serving student/1,2, teacher/1; stable student" in errors
    assert errors.count("reload: serving") < 10


def test_the_watch_loads_what_is_new_and_reports_what_it_rejects(root: Path, newer: Path) -> None:
    with running_service(root, "--api-servers", "2", "--watch") as service:
        publish(root, newer, 2)
        eventually(lambda: "student/2" in served(service.url))
        assert versions_answering(service.url) == {"2"}
        corrupt(publish(root, newer, 3))
        eventually(lambda: "student/3" in served(service.url))
        assert served(service.url)["student/3"].startswith("UNAVAILABLE student/3/model.onnx has SHA-256")
        assert versions_answering(service.url) == {"2"}


def test_workers_keep_their_models(two_models: Path) -> None:
    assert "--watch needs --executor inprocess" in failed_start(
        two_models, "--watch", "--executor", "workers", status=2
    )
    flags = ("--api-servers", "1", "--executor", "workers", "--api-key", "the admin")
    with (
        running_service(two_models, *flags) as service,
        httpx.Client(base_url=service.url, headers=ADMIN, timeout=20) as client,
    ):
        answer = load(client, "teacher", "unload")
        assert answer.status_code == 400
        assert "only with --executor inprocess; restart the service" in answer.json()["error"]
        service.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert client.post("/predict/teacher", json=BODY).status_code == 200


def test_tritons_clients_load_and_unload(root: Path, newer: Path) -> None:
    flags = ("--api-servers", "2", "--api-key", "the admin", "--grpc-port", "0")
    with (
        running_service(root, *flags) as service,
        triton_grpc.InferenceServerClient(service.grpc) as grpc,
        triton_http.InferenceServerClient(service.url.removeprefix("http://")) as http,
    ):
        key = {"x-api-key": "the admin"}
        publish(root, newer, 2)
        grpc.load_model("student", headers=key)
        assert grpc.is_model_ready("student", "2", headers=key)
        with pytest.raises(InferenceServerException, match=r"NOT_FOUND.*it has 2"):
            grpc.is_model_ready("student", "1", headers=key)
        http.unload_model("teacher", headers=key)
        assert not http.is_model_ready("teacher", headers=key)
        found = {
            (one.name, one.version, one.state, one.reason)
            for one in grpc.get_model_repository_index(headers=key).models
        }
        assert found == {("student", "2", "READY", ""), ("teacher", "", "UNAVAILABLE", "unloaded")}
        grpc.load_model("teacher", headers=key)
        assert grpc.get_model_metadata("teacher", headers=key).versions == ["1"]
        grpc.unload_model("teacher", headers=key)
        for change in (grpc.load_model, grpc.unload_model):
            with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
                change("student")
            with pytest.raises(InferenceServerException, match=r"NOT_FOUND.*there is no model 'nothing'"):
                change("nothing", headers=key)
        with pytest.raises(InferenceServerException, match=r"INVALID_ARGUMENT.*is the stable model"):
            grpc.unload_model("student", headers=key)


def test_requests_under_way_get_the_version_that_they_began_with_and_none_is_lost(
    root: Path, newer: Path, client: httpx.Client
) -> None:
    """Versions 1 and 2 in turns, under the load of four clients."""
    matches = {"1": predictions_of(root / "student" / "1"), "2": predictions_of(newer)}
    publish(root, newer, 2)
    url, stop = str(client.base_url), []

    def requests() -> dict[str, int]:
        counts = {"1": 0, "2": 0}
        with httpx.Client(base_url=url, headers=ADMIN, timeout=20) as one:
            while not stop:
                answer = one.post("/predict/student", json=BODY)
                assert answer.status_code == 200, answer.text
                version = answer.json()["version"]
                assert matches[version](answer)
                counts[version] += 1
        return counts

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(requests) for _ in range(4)]
        try:
            for number in range(6):
                set_policy(root, f"specific {{ versions: {number % 2 + 1} }}")
                assert load(client).status_code == 200
        finally:
            stop.append(True)
        for one in running:
            assert min(one.result().values()) > 0
