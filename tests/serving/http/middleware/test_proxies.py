"""What proxies, browsers and other clients do to a request: HEAD, slashes, prefixes, forwarded headers, CORS."""

import asyncio
import http.client
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from starlette.types import Scope

from serving.http.middleware.normalise import NormalisedRequests
from tests.support.fast_path_server import Running, request, run_with_server
from tests.support.requests.connections import connect, post, read_answer
from tests.support.service import Service, running_service
from tests.support.training.samples import sample_test

ONE = {"image": sample_test().images[0].tolist()}
PAGE = "https://page.example"
PREFIX = "/digits"
KEEP_ALIVE_S = 1.0
JSON_ONLY = {"Accept": "application/json"}
"""A client that `/` redirects to the documentation."""
FORWARDED = {
    "X-Forwarded-For": "203.0.113.7",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "digits.example",
    "X-Forwarded-Prefix": "/public",
}
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "x-api-key",
}


@pytest.fixture(scope="module")
def proxied(one_model: Path) -> Iterator[Service]:
    """A service behind a proxy at 127.0.0.1 that publishes it under a prefix, used by the pages of two origins."""
    proxy = ("--root-path", PREFIX, "--trusted-proxies", "127.0.0.1,10.0.0.0/8")
    flags = ("--api-servers", "1", "--api-key", "secret", "--keep-alive", str(KEEP_ALIVE_S))
    with running_service(
        one_model, *flags, *proxy, "--cors-origins", f"{PAGE},http://localhost:3000"
    ) as service:
        yield service


@pytest.fixture
def client(proxied: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=proxied.url, headers={"X-API-Key": "secret"}) as client:
        yield client


def exchange(
    connection: http.client.HTTPConnection, method: str, path: str
) -> tuple[int, dict[str, str], bytes]:
    connection.request(method, path)
    answer = connection.getresponse()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def test_head_is_get_without_a_body_on_every_route(service: Service) -> None:
    document = httpx.get(f"{service.url}/openapi.json").json()
    paths = [path for path, operations in document["paths"].items() if "get" in operations]
    paths = [path.format(model="teacher", version="1") for path in paths]
    assert len(paths) > 15
    connection = http.client.HTTPConnection(str(urlsplit(service.url).netloc), timeout=10)
    for path in [*paths, "/", "/docs", "/openapi.json", "/docs/swagger-ui.css", "/nothing"]:
        status, headers, body = exchange(connection, "GET", path)
        found, head, nothing = exchange(connection, "HEAD", path)
        assert (found, nothing) == (status, b"")
        for values in (headers, head):
            values.pop("date")
            values.pop("x-request-id")
            if path == "/metrics" or path.endswith("/stats"):  # they change
                assert int(values.pop("content-length")) > 100
        if "content-length" in headers:
            assert int(headers["content-length"]) == len(body)
        assert head == headers
    connection.close()


def test_other_methods_on_a_prediction_route_are_a_405_that_names_post(service: Service) -> None:
    with httpx.Client(base_url=service.url) as client:
        for method in ("HEAD", "GET", "OPTIONS", "PUT", "DELETE", "PATCH"):
            for path in ("/predict", "/predict/teacher", "/read", "/v2/models/teacher/infer"):
                answer = client.request(method, path)
                assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
                assert bool(answer.content) == (method != "HEAD")
        assert client.options("/models").headers["Allow"] == "GET, HEAD"


def test_a_trailing_slash_makes_no_difference(service: Service) -> None:
    infer = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": [ONE["image"]]}]}
    with httpx.Client(base_url=service.url) as client:
        for _ in range(3):  # the last ones on the fast path
            for path, body in (
                ("/predict/", ONE),
                ("/predict/teacher/", ONE),
                ("/v2/models/teacher/infer/", infer),
            ):
                answer = client.post(path, json=body)
                assert (answer.status_code, answer.history) == (200, [])
        assert client.post("/predict/nobody/", json=ONE).json()["error"]["code"] == "unknown_model"
        assert client.post("/v2/repository/index/").status_code == 200
        for path in (
            "/models",
            "/models/teacher",
            "/health/ready",
            "/v2",
            "/v2/models/teacher",
            "/openapi.json",
        ):
            plain, slash = client.get(path), client.get(f"{path}/")
            assert (slash.status_code, slash.content) == (200, plain.content)
        assert client.get("/docs/").next_request.url.path == "/docs"
        assert client.get("/v2/nothing/").json()["error"].startswith("GET /v2/nothing")


def test_routes_exist_with_and_without_the_prefix_of_the_proxy(client: httpx.Client) -> None:
    for prefix in ("", PREFIX):
        for path in ("/predict", "/predict/student", "/predict/"):
            for _ in range(2):
                assert client.post(f"{prefix}{path}", json=ONE).status_code == 200
        for path in ("/models", "/v2/models/student", "/docs", "/metrics", "/health/live"):
            assert client.get(f"{prefix}{path}").status_code == 200
        assert client.get(f"{prefix}/nothing").json()["error"]["code"] == "not_found"
        assert isinstance(client.get(f"{prefix}/v2/nothing").json()["error"], str)
        assert client.post(f"{prefix}/predict/nobody", json=ONE).json()["error"]["code"] == "unknown_model"
        assert client.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": PREFIX}]
    for path in ("/", f"{PREFIX}/"):
        assert client.get(path, headers=JSON_ONLY).headers["Location"] == f"{PREFIX}/docs"
        assert client.get(path).status_code == 200
    assert client.get(PREFIX).next_request.url.path == f"{PREFIX}/"
    assert client.get(f"{PREFIX}y/models").status_code == 404


def test_no_form_of_a_path_or_method_avoids_the_key(proxied: Service) -> None:
    with httpx.Client(base_url=proxied.url) as client:
        for path in ("/models", "/models/student", "/v2/models/student", "/predict", "/predict/student"):
            for form in (path, f"{path}/", f"{PREFIX}{path}", f"{PREFIX}{path}/"):
                for method in ("GET", "HEAD", "POST"):
                    status = client.request(method, form, headers=FORWARDED).status_code
                    allowed = {401, 405} if method == "POST" else {401}  # 405: the route has no POST
                    assert status in allowed, (method, form)


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_the_documentation_loads_nothing_from_another_host(
    service: Service, proxied: Service, prefix: str
) -> None:
    base = (proxied if prefix else service).url + prefix
    with httpx.Client() as client:
        home = client.get(f"{base}/", headers=JSON_ONLY)
        url = urljoin(f"{base}/", home.headers["Location"])
        assert url == f"{base}/docs"
        page = client.get(url).text
        assert not re.findall(r"https?://", page)
        found = re.findall(r"""(?:src|href|url)(?:=|: )["']([^"']+)""", page)
        assert len(found) >= 4
        for relative in found:
            if not relative.startswith("data:"):
                resource = client.get(urljoin(url, relative))
                assert (resource.status_code, resource.url.host) == (200, "127.0.0.1")
                assert len(resource.content) > 1000
                plain = client.get(resource.url, headers={"Accept-Encoding": "identity"})
                assert plain.content == resource.content
                if relative != "openapi.json":
                    assert (resource.headers["Content-Encoding"], "Content-Encoding" in plain.headers) == (
                        "gzip",
                        False,
                    )
        assert client.get(f"{base}/redoc").status_code == 404  # its page would load a picture


def test_forwarded_headers_count_only_from_a_trusted_proxy(proxied: Service, client: httpx.Client) -> None:
    document = client.get("/openapi.json", headers=FORWARDED).json()
    assert document["servers"] == [{"url": "https://digits.example/public"}]
    assert client.get("/", headers=FORWARDED | JSON_ONLY).headers["Location"] == "/public/docs"
    for headers, servers in (
        ({"X-Forwarded-Proto": "https", "Host": "digits.example"}, f"https://digits.example{PREFIX}"),
        ({"X-Forwarded-Prefix": "//evil.example"}, PREFIX),
        ({"X-Forwarded-Prefix": "/a/b/"}, "/a/b"),
        ({}, PREFIX),
    ):
        assert client.get("/openapi.json", headers=headers).json()["servers"] == [{"url": servers}]
    assert client.get("/public/models", headers=FORWARDED).json()["default"] == "student"
    anyone = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(base_url=proxied.url, transport=anyone) as untrusted:
        assert untrusted.get("/openapi.json", headers=FORWARDED).json()["servers"] == [{"url": PREFIX}]
        assert untrusted.get("/", headers=FORWARDED | JSON_ONLY).headers["Location"] == f"{PREFIX}/docs"


def cors(answer: httpx.Response) -> tuple[str | None, bool]:
    """Return the origin that may read a response, and whether caches keep it apart from those for other origins."""
    return answer.headers.get("Access-Control-Allow-Origin"), "Origin" in answer.headers.get("Vary", "")


def test_pages_of_the_named_origins_may_read_responses_and_no_others(client: httpx.Client) -> None:
    for origin, allowed in (
        (PAGE, PAGE),
        ("http://localhost:3000", "http://localhost:3000"),
        ("https://evil.example", None),
        ("null", None),
        (f"{PAGE}.evil.example", None),
    ):
        headers = {"Origin": origin}
        for _ in range(3):  # the last ones on the fast path
            for answer in (
                client.post("/predict", json=ONE, headers=headers),
                client.post("/predict", json={"image": [1]}, headers=headers),
                client.post("/predict", json=ONE, headers=headers | {"X-API-Key": "wrong"}),
            ):
                assert cors(answer) == (allowed, True)
                assert "Server-Timing" in answer.headers.get("Access-Control-Expose-Headers", "")
        assert cors(client.get("/models", headers=headers)) == (allowed, True)
        assert cors(client.post("/predict", json=ONE)) == (None, True)
        preflight = client.options("/predict", headers=PREFLIGHT | headers)
        assert cors(preflight) == (allowed, True)
        assert preflight.status_code == (200 if allowed else 400)
    without_key = client.options("/predict", headers=PREFLIGHT | {"X-API-Key": ""})
    assert without_key.status_code == 200  # browsers send no key with it
    assert "x-api-key" in without_key.headers["Access-Control-Allow-Headers"]
    assert "POST" in without_key.headers["Access-Control-Allow-Methods"]


def test_no_page_may_read_responses_by_default(service: Service) -> None:
    with httpx.Client(base_url=service.url) as client:
        for _ in range(3):
            assert cors(client.post("/predict", json=ONE, headers={"Origin": PAGE})) == (None, False)
        assert client.options("/predict", headers=PREFLIGHT).status_code == 405


def test_an_idle_connection_is_closed_after_the_time_set(proxied: Service) -> None:
    data = post("/predict", json.dumps(ONE).encode(), "X-API-Key: secret")
    with connect(proxied.url) as connection:
        for _ in range(3):
            connection.sendall(data)
            assert read_answer(connection)[0] == 200
            time.sleep(0.4 * KEEP_ALIVE_S)
        started = time.monotonic()
        assert connection.recv(1000) == b""
        assert time.monotonic() - started > 0.4 * KEEP_ALIVE_S
    with connect(proxied.url) as connection:
        for _ in range(2):
            connection.sendall(data)
            assert read_answer(connection)[0] == 200
        connection.sendall(data.replace(b"Host: x", b"Host: x\r\nConnection: close"))
        assert read_answer(connection)[1]["connection"] == "close"
        assert connection.recv(1000) == b""


def test_curl_may_offer_http_2(service: Service) -> None:
    command = ["curl", "--silent", "--http2", "--json", json.dumps(ONE), f"{service.url}/predict"]
    both = subprocess.run([*command, "--next", *command[1:]], capture_output=True, check=True, timeout=20)
    decoder, text, answers = json.JSONDecoder(), both.stdout.decode(), []
    while text:
        answer, end = decoder.raw_decode(text)
        answers.append(answer["predictions"])
        text = text[end:]
    assert len(answers) == 2


def test_every_origin_is_allowed_when_all_are(one_model: Path) -> None:
    async def scenario(service: Running) -> None:
        client = await service.connect()
        for _ in range(3):  # the last ones on the fast path
            client.writer.write(request(ONE, f"Origin: {PAGE}"))
            status, headers, _ = await client.answer()
            assert (status, headers["access-control-allow-origin"]) == (200, "*")
        assert service.parsed == 1

    run_with_server(one_model, scenario, cors_origins=["*"])


@pytest.mark.parametrize(
    ("address", "trusted"),
    [("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("::1", True), ("11.1.2.3", False), ("", False)],
)
def test_an_address_is_trusted_in_any_notation(address: str, trusted: bool) -> None:
    found: list[Scope] = []

    async def app(scope: Scope, *_: Any) -> None:
        found.append(scope)

    headers = [(name.lower().encode(), value.encode()) for name, value in FORWARDED.items()]
    client = (address, 1) if address else None
    scope = {
        "type": "http",
        "method": "HEAD",
        "path": "/models/",
        "scheme": "http",
        "headers": headers,
        "client": client,
    }
    asyncio.run(NormalisedRequests(app, PREFIX, ["10.0.0.0/8", "::1"])(scope, Any, Any))
    [seen] = found
    prefix, scheme = ("/public", "https") if trusted else (PREFIX, "http")
    assert (seen["method"], seen["path"], seen["root_path"]) == ("GET", f"{prefix}/models", prefix)
    assert seen["scheme"] == scheme
    assert not trusted or seen["client"][0] == "203.0.113.7"
