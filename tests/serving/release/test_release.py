"""A release on a real service: aliases, the candidate's share, shadow traffic, promotion and rollback."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.repository import add_version
from tests.support.service import Service, eventually, running_service
from tests.support.training.samples import sample_test

KEY = {"X-API-Key": "secret"}
DIGITS = sample_test().images.numpy()
TENSOR = {"name": "image", "shape": [1, 28, 28], "datatype": "UINT8", "data": DIGITS[0].ravel().tolist()}


@pytest.fixture(scope="module")
def models(model_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """student/1; student/2, the network trained without a teacher; and twin/1, a copy of student/1."""
    root = Path(copytree(model_repository, tmp_path_factory.mktemp("release") / "models"))
    add_version(root, "student-alone", "student", 2)
    add_version(root, "student", "twin", 1)
    (root / "student/config.pbtxt").write_text("version_policy: { all { } }")
    (root / "release.json").write_text(json.dumps({"stable": "student/1"}))
    return root


@pytest.fixture(scope="module")
def service(models: Path) -> Iterator[Service]:
    environment = {"DISTILLERY_API_KEY": "secret"}
    with running_service(models, "--api-servers", "2", environment=environment) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    """A client; the service has no candidate at its start and end."""
    with httpx.Client(base_url=service.url, headers=KEY, timeout=30) as client:
        yield client
        if client.get("/release").json()["candidate"]:
            client.post("/release/rollback")


def start(client: httpx.Client, **document: Any) -> dict[str, Any]:
    answer = client.put("/release", json={"candidate": "student/2"} | document)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def versions(client: httpx.Client, number: int, path: str = "/predict", **headers: str) -> Counter[str]:
    """Return how many of the requests each version has answered."""
    found: Counter[str] = Counter()
    for index in range(number):
        image = DIGITS[index % len(DIGITS)].tobytes()
        octets = {"Content-Type": "application/octet-stream", **headers}
        answer = client.post(path, content=image, headers=octets)
        assert answer.status_code == 200
        found[answer.json()["version"]] += 1
    return found


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_the_stable_version_serves_requests_that_name_no_model(client: httpx.Client) -> None:
    assert versions(client, 5) == {"1": 5}
    assert versions(client, 5, "/predict/stable") == {"1": 5}
    assert versions(client, 5, "/predict/student") == {"2": 5}  # the highest


def test_without_a_candidate_its_alias_is_unknown(client: httpx.Client) -> None:
    answer = client.post("/predict/candidate", content=DIGITS[0].tobytes())
    assert answer.status_code == 404
    assert "student, student-alone, student-int8, teacher, twin, stable" in answer.json()["error"]["message"]


def test_a_share_of_the_requests_goes_to_the_candidate(client: httpx.Client) -> None:
    state = start(client, share=0.25)
    assert (state["stable"], state["candidate"], state["share"]) == ("student/1", "student/2", 0.25)
    for path in ("/predict", "/predict/stable"):
        assert 45 < versions(client, 300, path)["2"] < 110  # 75 ± 4 standard deviations
    assert versions(client, 5, "/predict/candidate") == {"2": 5}
    assert versions(client, 5, "/predict/student/versions/1") == {"1": 5}


def test_the_split_holds_for_the_open_inference_protocol(client: httpx.Client) -> None:
    start(client, share=0.5)
    document = {"inputs": [TENSOR]}
    answers = [client.post("/v2/models/stable/infer", json=document).json() for _ in range(60)]
    found = Counter(answer["model_version"] for answer in answers)
    assert found["1"] > 8
    assert found["2"] > 8
    assert {answer["model_name"] for answer in answers} == {"student"}
    assert client.get("/v2/models/candidate").json()["versions"] == ["1", "2"]


def test_requests_with_one_id_get_one_version(client: httpx.Client) -> None:
    start(client, share=0.5)
    assigned = {name: versions(client, 4, **{"X-Request-ID": f"user-{name}"}) for name in range(20)}
    assert all(len(found) == 1 for found in assigned.values())
    assert {version for found in assigned.values() for version in found} == {"1", "2"}


def test_requests_with_one_key_get_one_version_if_so_configured(client: httpx.Client) -> None:
    start(client, share=0.5, sticky="key")
    assert len(versions(client, 20)) == 1


def test_mirrored_requests_are_compared_and_answered_by_the_stable_version(client: httpx.Client) -> None:
    start(client, shadow=1)
    name = "distillery_shadow_comparisons_total"
    before = metric(client, name)
    assert versions(client, 50) == {"1": 50}
    dropped = "distillery_shadow_dropped_requests_total"
    eventually(lambda: metric(client, name) - before + metric(client, dropped) >= 50)


def test_promotion_and_two_rollbacks(client: httpx.Client, models: Path) -> None:
    start(client, share=0.1)
    state = client.post("/release/promote").json()
    assert (state["stable"], state["candidate"], state["previous"]) == ("student/2", None, "student/1")
    assert versions(client, 5) == {"2": 5}
    assert json.loads((models / "release.json").read_text())["stable"] == "student/2"
    state = client.post("/release/rollback").json()
    assert (state["stable"], state["previous"]) == ("student/1", None)
    assert versions(client, 5) == {"1": 5}
    answer = client.post("/release/rollback")
    assert answer.status_code == 422
    assert "neither a candidate nor a previous stable version" in answer.json()["error"]["message"]
    decisions = [(one["decision"], one["by"]) for one in state["decisions"][-3:]]
    assert decisions == [("start", "person"), ("promote", "person"), ("rollback", "person")]
    assert metric(client, 'distillery_release_decisions_total{by="person",decision="promote"}') >= 1


def decision_on_a_bad_candidate(client: httpx.Client) -> dict[str, Any]:
    """Send noise to the candidate, as if its network were bad, and digits to the other; return the decision."""
    noise = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8).tobytes()
    octets = {"Content-Type": "application/octet-stream"}

    def decided() -> bool:
        for _ in range(40):
            client.post("/predict/candidate", content=noise, headers=octets)
            client.post("/predict/student/versions/1", content=DIGITS[1].tobytes(), headers=octets)
        return client.get("/release").json()["candidate"] is None

    eventually(decided, seconds=30)
    decision: dict[str, Any] = client.get("/release").json()["decisions"][-1]
    assert decision["by"] == "rule"
    return decision


def test_a_candidate_whose_predictions_are_rejected_more_often_is_rolled_back_by_rule(
    client: httpx.Client,
) -> None:
    start(client, share=0.01, rule={})
    decision = decision_on_a_bad_candidate(client)
    assert decision["decision"] == "rollback"
    assert "unaccepted" in decision["reason"]


def test_what_the_rule_ignores_decides_nothing(client: httpx.Client) -> None:
    """A candidate whose predictions are rejected more often is promoted, because it fails no more often."""
    rule = {"negligible": 0.2, "criteria": ["failed", "unaccepted"], "slow_ms": 4000}
    start(client, share=0.01, rule=rule | {"ignored": ["unaccepted"]})
    decision = decision_on_a_bad_candidate(client)
    assert decision["decision"] == "promote"
    assert "unaccepted" not in decision["reason"]
    client.post("/release/rollback")


def test_a_candidate_as_good_as_the_stable_version_is_promoted_by_rule(client: httpx.Client) -> None:
    rule = {"negligible": 0.2, "criteria": ["failed", "unaccepted"], "slow_ms": 4000}
    start(client, candidate="twin", share=0.5, rule=rule)

    def promoted() -> bool:
        versions(client, 100)
        return bool(client.get("/release").json()["stable"] == "twin/1")

    eventually(promoted, seconds=30)
    last = client.get("/release").json()["decisions"][-1]
    assert last["by"] == "rule"
    counts = r"\d+ of \d+ against \d+ of \d+"
    assert re.fullmatch(f"as good in failed: {counts}; unaccepted: {counts}", last["reason"])
    client.post("/release/rollback")


@pytest.mark.parametrize(
    ("document", "status", "message"),
    [
        ({"candidate": "student/9"}, 404, "there is no version '9' of model 'student'"),
        ({"candidate": "nobody"}, 404, "there is no model 'nobody'; the repository has student"),
        ({"candidate": "student/1"}, 422, "student/1 is the stable version"),
        ({"candidate": "stable"}, 422, "is not a model or a version of one"),
        ({"candidate": "../etc"}, 422, "is not a model or a version of one"),
        ({"candidate": "student/2", "share": 1.5}, 422, "share: Input should be less than or equal to 1"),
        (
            {"candidate": "student/2", "shadow": -0.1},
            422,
            "shadow: Input should be greater than or equal to 0",
        ),
        ({"candidate": "student/2", "share": float("nan")}, 400, "is not JSON"),
        ({"candidate": "student/2", "rule": {"criteria": ["speed"]}}, 422, "rule.criteria.0"),
        ({"candidate": "student/2", "weight": 1}, 422, "unknown setting"),
        ([], 422, "valid dictionary"),
    ],
)
def test_a_bad_candidate_is_rejected_with_value_and_fix(
    client: httpx.Client, document: Any, status: int, message: str
) -> None:
    answer = client.put("/release", content=json.dumps(document))
    assert (answer.status_code, message in answer.json()["error"]["message"]) == (status, True), answer.text
    assert versions(client, 2) == {"1": 2}


def test_bodies_that_are_no_json_or_too_large_are_rejected(client: httpx.Client) -> None:
    assert client.put("/release", content=b"{").status_code == 400
    assert client.put("/release", content=b" " * 100_000).status_code == 413


def test_changes_need_a_key_of_an_administrator(service: Service, models: Path) -> None:
    for method, path in (("PUT", "/release"), ("POST", "/release/promote"), ("POST", "/release/rollback")):
        assert httpx.request(method, f"{service.url}{path}").status_code == 401
    with running_service(models, "--api-servers", "1") as open_service:
        answer = httpx.post(f"{open_service.url}/release/promote")
        assert answer.status_code == 403
        assert "scope admin" in answer.json()["error"]["message"]


def test_the_command_shows_and_changes_the_release(service: Service, client: httpx.Client) -> None:
    from serving.__main__ import ReleaseCall  # noqa: PLC0415

    def run(action: str, **settings: Any) -> None:
        ReleaseCall(action=action, url=service.url, api_key="secret", **settings).run()

    run("start", candidate="student/2", share=0.2, rule=True)
    state = client.get("/release").json()
    assert (state["candidate"], state["share"], state["rule"]["alpha"]) == ("student/2", 0.2, 0.05)
    run("show")
    run("rollback")
    assert client.get("/release").json()["candidate"] is None


def test_other_shares_leave_the_evidence_as_it_is(client: httpx.Client) -> None:
    start(client, share=0.5)
    versions(client, 100)

    def counted(state: dict[str, Any]) -> bool:
        return bool(state["criteria"] and state["criteria"]["failed"]["candidate"][1] > 20)

    eventually(lambda: versions(client, 20) and counted(client.get("/release").json()))
    assert counted(start(client, share=0.6))


def test_a_decision_that_cannot_be_written_outlasts_a_reload(models: Path) -> None:
    environment = {"DISTILLERY_API_KEY": "secret"}
    root = models.parent / "unwritable"
    copytree(models, root)
    lock = "import serving.release.decisions as d, distillery as e\n"
    lock += "def fail(*_): raise e.DistilleryError('read-only')\nd.write_release = fail"
    with (
        running_service(root, "--api-servers", "1", environment=environment, setup=lock) as service,
        httpx.Client(base_url=service.url, headers=KEY, timeout=30) as client,
    ):
        start(client, share=0.1)
        state = client.post("/release/promote").json()
        assert (state["stable"], state["persisted"]) == ("student/2", False)
        assert client.post("/v2/repository/models/teacher/load").status_code == 200
        assert client.get("/release").json()["stable"] == "student/2"
