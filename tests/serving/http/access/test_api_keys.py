"""API keys: hashed in a file that is read again, scopes, rates and open routes."""

import hmac
import io
import time
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import grpc
import httpx
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

import distillery
from distillery import DistilleryError
from serving.__main__ import COMMANDS
from serving.codecs.errors import Unauthorized
from serving.engine.admission.api_keys import Access, hash_of
from tests.support.fast_path_server import Running, one, request, run_with_server, until
from tests.support.service import (
    API_KEY,
    Service,
    eventually,
    failed_start,
    running_service,
    starting_service,
)

LIMIT = 5


def make_key(file: Path, name: str, *flags: str) -> str:
    """Add a key to a file as an operator does, and return it."""
    printed, told = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(told):
        assert distillery.main("distillery-serve", COMMANDS, arguments=["key", name, *flags]) == 0
    with file.open("a") as entries:
        entries.write(printed.getvalue())
    return told.getvalue().strip()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.toml"


@pytest.fixture(scope="module")
def keys(file: Path) -> dict[str, str]:
    """The keys of the service, by name; each is made by a process of its own."""
    flags = {"alice": (), "prometheus": ("--scopes", "metrics"), "bob": ("--rate", f"{LIMIT}/day")}
    return {name: make_key(file, name, *flags[name]) for name in flags}


@pytest.fixture(scope="module")
def closed(one_model: Path, file: Path, keys: dict[str, str]) -> Iterator[Service]:  # noqa: ARG001 - they are in the file
    """A service with two processes and several keys, of which nothing is open."""
    flags = ("--api-servers", "2", "--api-keys", str(file), "--open-routes", "", "--grpc-port", "0")
    variables = {"DISTILLERY_API_KEY": API_KEY}
    with running_service(one_model, *flags, environment=variables) as service:
        yield service


def get(url: str, path: str, key: str = "") -> httpx.Response:
    return httpx.get(url + path, headers={"X-API-Key": key} if key else {})


def predict(url: str, key: str) -> httpx.Response:
    return httpx.post(f"{url}/predict", json=one(0), headers={"X-API-Key": key})


def test_a_key_opens_the_routes_of_its_scopes(closed: Service, keys: dict[str, str]) -> None:
    everyone = {"alice": keys["alice"], "prometheus": keys["prometheus"], "environment": API_KEY}
    for path, allowed in (
        ("/models", {"alice", "environment"}),
        ("/v2/models/student", {"alice", "environment"}),
        ("/docs", {"alice", "environment"}),
        ("/docs/swagger-ui.css", {"alice", "environment"}),
        ("/openapi.json", {"alice", "environment"}),
        ("/metrics", {"prometheus", "environment"}),
        ("/health/live", set(everyone)),
        ("/v2/health/ready", set(everyone)),
    ):
        assert get(closed.url, path).status_code == 401, path
        assert get(closed.url, path, "wrong").status_code == 401, path
        found = {name: get(closed.url, path, key).status_code for name, key in everyone.items()}
        assert found == {name: 200 if name in allowed else 403 for name in everyone}, path
    assert predict(closed.url, keys["alice"]).status_code == predict(closed.url, API_KEY).status_code == 200
    rejected = predict(closed.url, keys["prometheus"])
    assert (rejected.status_code, rejected.json()["error"]["code"]) == (403, "forbidden")
    assert keys["prometheus"] not in rejected.text + get(closed.url, "/openapi.json", API_KEY).text


def test_the_file_contains_hashes_and_no_key(file: Path, keys: dict[str, str]) -> None:
    content = file.read_text()
    for key in keys.values():
        assert hash_of(key) in content
        assert key.removeprefix("dk_") not in content


def test_a_key_is_compared_with_all_others_in_constant_time(
    file: Path, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bytes] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return hmac.compare_digest(one, other)

    monkeypatch.setattr("serving.engine.admission.api_keys.hmac", SimpleNamespace(compare_digest=compare))
    access = Access(file=file)
    for key in (*keys.values(), "wrong", ""):
        compared.clear()
        with nullcontext() if key in keys.values() else pytest.raises(Unauthorized):
            access.check(key.encode(), None)
        assert len(compared) == len(keys)


def test_no_secret_is_in_logs_documents_metrics_or_errors(one_model: Path, tmp_path: Path) -> None:
    file, secret, wrong = tmp_path / "keys.toml", "dk_of-the-environment", "dk_wrong"
    key = make_key(file, "alice", "--rate", "5/day")
    flags = ("--api-servers", "1", "--api-keys", str(file), "--log-level", "debug", "--open-routes", "")
    with starting_service(one_model, *flags, environment={"DISTILLERY_API_KEY": secret}) as service:
        url = service.wait_until_ready()
        headers = {one_key: {"X-API-Key": one_key} for one_key in (secret, key, wrong)}
        with httpx.Client(base_url=url) as client:
            answers = [
                client.post("/predict", json=one(0), headers=headers[k]) for k in [secret, wrong, *[key] * 6]
            ]
            for path in ("/docs", "/openapi.json", "/metrics", "/models", "/nowhere"):
                answers += [client.get(path, headers=headers[k]) for k in headers]
        assert {answer.status_code for answer in answers} == {200, 401, 403, 404, 429}
        file.write_text(f"[[keys]]\nname = {key}")
        time.sleep(0.6)
        texts = [*service.end(), *(f"{answer.headers} {answer.text}" for answer in answers)]
        assert "is not valid TOML" in texts[1]
        for text in texts:
            for part in (secret, key, wrong, hash_of(key).removeprefix("sha256:")):
                assert part not in text


def test_grpc_methods_need_a_key_where_http_routes_do(closed: Service, keys: dict[str, str]) -> None:
    with grpc.insecure_channel(closed.grpc) as channel:
        health = HealthStub(channel).Check  # type: ignore[no-untyped-call]
        for key, code in (
            (None, grpc.StatusCode.UNAUTHENTICATED),
            ("wrong", grpc.StatusCode.UNAUTHENTICATED),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                health(HealthCheckRequest(), metadata=(("x-api-key", key),) if key else ())
            assert caught.value.code() == code
        assert health(HealthCheckRequest(), metadata=(("x-api-key", keys["prometheus"]),)).status == 1
        ready = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")
        metadata = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
        with pytest.raises(grpc.RpcError):
            ready(b"")
        with pytest.raises(grpc.RpcError) as caught:
            metadata(b"", metadata=(("x-api-key", keys["prometheus"]),))
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
        assert ready(b"", metadata=(("x-api-key", keys["prometheus"]),))


def test_a_rate_holds_for_all_processes_together(closed: Service, keys: dict[str, str]) -> None:
    answers = [predict(closed.url, keys["bob"]) for _ in range(LIMIT + 3)]  # each on a connection of its own
    assert [answer.status_code for answer in answers] == [200] * LIMIT + [429] * 3
    assert {answer.headers["RateLimit-Policy"] for answer in answers} == {f'"default";q={LIMIT};w=86400'}
    left = [answer.headers["RateLimit"].partition(";t=")[0] for answer in answers]
    assert left == [f'"default";r={number}' for number in (4, 3, 2, 1, 0, 0, 0, 0)]
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 86400
    assert answers[-1].json()["error"]["code"] == "rate_limited"
    listed = get(closed.url, "/models", keys["bob"])
    assert (listed.status_code, "RateLimit" in listed.headers) == (429, True)
    assert "RateLimit" not in predict(closed.url, keys["alice"]).headers


def test_keys_change_with_the_file_without_a_restart(
    closed: Service, file: Path, keys: dict[str, str]
) -> None:
    before = file.read_text()
    with httpx.Client(base_url=closed.url) as kept:
        headers = {"X-API-Key": keys["alice"]}
        assert [kept.post("/predict", json=one(0), headers=headers).status_code for _ in range(3)] == [
            200
        ] * 3
        file.write_text("[[keys]]\nhash = 'not a hash'\n")  # changes nothing
        new = make_key(file.parent / "new.toml", "new")
        assert kept.post("/predict", json=one(0), headers=headers).status_code == 200
        (file.parent / "new.toml").rename(file)
        eventually(lambda: all(predict(closed.url, new).status_code == 200 for _ in range(10)))
        assert kept.post("/predict", json=one(0), headers=headers).status_code == 401
    file.write_text(before)
    eventually(lambda: all(predict(closed.url, keys["alice"]).status_code == 200 for _ in range(10)))


def test_the_health_check_sends_the_key(closed: Service) -> None:
    for key, status in ((None, 1), (API_KEY, 0)):
        flags = ["--api-key", key] if key else []
        health = ["health", "--url", closed.url, *flags]
        assert distillery.main("distillery-serve", COMMANDS, arguments=health) == status


def test_a_revoked_key_is_rejected_on_the_fast_path(one_model: Path, tmp_path: Path) -> None:
    """The heads of its requests are remembered, by its connection and for all others."""
    file = tmp_path / "keys.toml"
    key, other = make_key(file, "alice"), make_key(tmp_path / "other.toml", "other")

    async def scenario(service: Running) -> None:
        first, second = await service.connect(), await service.connect()
        asking, other_asking = (request(one(0), f"X-API-Key: {one_key}") for one_key in (key, other))
        assert [(await client.ask(asking))[0] for client in (first, first, second, second)] == [200] * 4
        assert service.parsed == 1
        (tmp_path / "other.toml").rename(file)
        third = await service.connect()
        access = service.service.admission.access
        await until(lambda: "other" in [one.name for one in access._keys])
        for client in (first, second, third):
            assert (await client.ask(asking))[0] == 401
        assert service.parsed == 1
        assert (await third.ask(other_asking))[0] == 200

    run_with_server(one_model, scenario, api_keys=file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected tables [[keys]]"),
        ("keys = 'sesame'", "expected tables [[keys]]"),
        ("keys = ['sesame']", "key 1: expected a table"),
        ("[[keys]]\nname = 'a'\nkey = 'sesame'", "key 1: expected a table with name and hash"),
        ("[[keys]]\nname = 'a'\nhash = 'sesame'", "key 1: hash: is not sha256: and 64 digits"),
        ("[[keys]]\nname = 'a'\nhash = ['sesame']", "key 1: expected a table with name and hash"),
        ("[[keys]]\nname = 'a'\nhash = 'sha256:HASH'\nrate = '5/week'", "'5/week' is not a rate such as"),
        (
            "[[keys]]\nname = 'a'\nhash = 'sha256:HASH'\nscopes = ['x']",
            "key 1: scopes.0: Input should be 'infer'",
        ),
        ("[[keys]]\nname = 'a'\nhash = 'sha256:HASH'\n" * 2, "key 2: another one has the name 'a'"),
        ("[[keys]\nsesame", "is not valid TOML"),
    ],
)
def test_an_invalid_file_is_an_error_without_its_secrets(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(content.replace("HASH", "0" * 64))
    with pytest.raises(DistilleryError) as caught:
        Access(file=file)
    assert message in str(caught.value)
    assert "sesame" not in str(caught.value)


def test_a_missing_file_of_keys_is_an_error_at_the_start(one_model: Path, tmp_path: Path) -> None:
    assert "there is no file" in failed_start(one_model, "--api-keys", str(tmp_path / "missing.toml"))
