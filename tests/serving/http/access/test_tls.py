"""TLS: HTTPS and gRPC on the service's own ports, and a certificate that changes while it runs."""

import os
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import httpx
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

import distillery
from serving.__main__ import COMMANDS
from serving.client import Client
from serving.engine.admission.api_keys import hash_of
from tests.support.certificates import Authority
from tests.support.fast_path_server import DIGITS, Running, one, request, run_with_server
from tests.support.requests.connections import connect, post, read_answer
from tests.support.service import Service, eventually, running_service

CLIENT_TIMEOUT_S = 1


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    authority = Authority(tmp_path)
    authority.issue()
    return authority


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority of the service."""
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    write_keys(file, "first")
    return file


def write_keys(file: Path, *keys: str) -> None:
    file.write_text("".join(f'[[keys]]\nname = "{key}"\nhash = "{hash_of(key)}"\n' for key in keys))


@pytest.fixture(scope="module")
def secure(one_model: Path, served: Authority, keys: Path) -> Iterator[Service]:
    """A service with TLS and API keys in two processes."""
    served.issue()
    flags = ("--api-servers", "2", "--grpc-port", "0", "--client-timeout", str(CLIENT_TIMEOUT_S))
    with running_service(one_model, *flags, *served.flags, "--api-keys", str(keys)) as service:
        yield service


def presented(address: str) -> set[str]:
    """Return the certificates of some new connections, which several processes accept."""
    host, port = address.rsplit(":", 1)
    return {ssl.get_server_certificate((host, int(port))) for _ in range(8)}


def place(service: Service) -> str:
    return urlsplit(service.url).netloc


def health(*arguments: str) -> int:
    return distillery.main("distillery-serve", COMMANDS, arguments=["health", *arguments])


def test_http_grpc_client_and_health_check_use_tls(
    secure: Service, served: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert secure.url.startswith("https://127.0.0.1:")
    with Client(secure.url, api_key="first", ca_file=served.file) as client:
        assert client.predict(DIGITS[:2]).model == "student"
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"{secure.url}/health/live")
    credentials = grpc.ssl_channel_credentials(served.file.read_bytes())
    with grpc.secure_channel(secure.grpc, credentials) as channel:
        assert HealthStub(channel).Check(HealthCheckRequest()).status == 1  # type: ignore[no-untyped-call]
    assert health("--url", secure.url) == 0
    monkeypatch.setenv("SSL_CERT_FILE", str(served.file))
    assert health("--url", secure.url) == 0


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_versions_before_1_2_are_rejected(secure: Service) -> None:
    for address in (place(secure), secure.grpc):
        for version, works in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)):
            client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
            client.set_ciphers("ALL:@SECLEVEL=0")  # with which OpenSSL itself would serve 1.1
            client.minimum_version = client.maximum_version = version
            with connect(f"https://{address}") as plain:
                expectation = nullcontext() if works else pytest.raises(ssl.SSLError)
                with expectation, client.wrap_socket(plain) as connection:
                    assert connection.version() == "TLSv1.2"


def test_a_handshake_that_does_not_complete_ends_after_the_client_timeout(secure: Service) -> None:
    """Nor does plain HTTP, nor anything else that is not TLS."""
    for address in (place(secure), secure.grpc):
        with connect(f"http://{address}") as silent, connect(f"http://{address}") as begun:
            begun.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc")  # of a ClientHello
            started = time.monotonic()
            for connection in (silent, begun):
                assert connection.recv(1000) == b""
            assert 0.5 * CLIENT_TIMEOUT_S < time.monotonic() - started < CLIENT_TIMEOUT_S + 3
    for junk in (post("/predict", b"{}"), b"\x16\x03\x01\xff\xff" + bytes(70_000), b"\x00"):
        with connect(secure.url) as connection:
            connection.sendall(junk)
            connection.shutdown(socket.SHUT_WR)
            try:
                while received := connection.recv(1000):
                    assert received[:1] == b"\x15"  # an alert
            except ConnectionResetError:
                pass
    assert health("--url", secure.url) == 0


def test_a_new_certificate_serves_new_connections_and_an_invalid_one_none(
    secure: Service, served: Authority, keys: Path
) -> None:
    """A process that replaces another one meanwhile has the newest valid certificate and keys as well."""
    predict = partial(post, "/predict", request(one(0)).partition(b"\r\n\r\n")[2])
    before = presented(place(secure))
    assert before == presented(secure.grpc)
    with served.client().wrap_socket(connect(secure.url), server_hostname="127.0.0.1") as kept:
        kept.sendall(predict("X-API-Key: first"))
        assert read_answer(kept)[0] == 200
        after = {served.issue()}
        write_keys(keys, "second")
        eventually(lambda: presented(place(secure)) == after)
        eventually(lambda: presented(secure.grpc) == after)
        for key, status in (("first", 401), ("second", 200)):
            kept.sendall(predict(f"X-API-Key: {key}"))
            assert read_answer(kept)[0] == status
    time.sleep(0.6)  # the parent process reads them too
    served.key.write_text(served.key.read_text()[:100])
    keys.write_text("[[keys]")
    time.sleep(0.6)
    dead = secure.children()[0]
    os.kill(dead, signal.SIGKILL)
    assert "restarting it" in secure.read_line()
    eventually(lambda: len(secure.children()) == 2 and dead not in secure.children())
    assert presented(place(secure)) == after
    with httpx.Client(base_url=secure.url, verify=served.client()) as client:
        for key, status in (("first", 401), ("second", 200)):
            for _ in range(8):
                headers = {"X-API-Key": key, "Connection": "close"}
                assert client.post("/predict", json=one(0), headers=headers).status_code == status
    last = {served.issue()}
    eventually(lambda: presented(place(secure)) == last)
    with served.client().wrap_socket(connect(secure.url), server_hostname="127.0.0.1"), connect(secure.url):
        ending = time.monotonic()  # neither an idle connection nor a handshake delays the end
        errors = secure.end()[1].splitlines()
        assert time.monotonic() - ending < 4.5
    assert not any("graceful" in line for line in errors), errors
    assert [line.partition(str(served.key.parent))[0] for line in errors if "tls" in line] == [
        "ERROR distillery: --tls-key "
    ], errors
    assert sum("--api-keys" in line for line in errors) == 1, errors


@pytest.mark.parametrize("fast_path", [True, False], ids=["fast-path", "no-fast-path"])
def test_repeated_and_large_requests_pass_over_tls(
    one_model: Path, authority: Authority, *, fast_path: bool
) -> None:
    async def scenario(service: Running) -> None:
        first, second = await service.connect(authority.client()), await service.connect(authority.client())
        answers = [await client.ask(request(one(0))) for client in (first, first, second, second)]
        assert [status for status, _ in answers] == [200] * 4
        assert service.parsed == (1 if fast_path else 4)
        digits = DIGITS[:100].tolist()
        status, large = await first.ask(request({"images": digits}))
        assert (status, len(large["predictions"])) == (200, 100)
        first.writer.write(b"GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        status, headers, _ = await first.answer()
        assert (status, headers["strict-transport-security"]) == (404, "max-age=86400")
        assert await first.reader.read() == b""

    settings = {"tls_cert": authority.certificate, "tls_key": authority.key}
    run_with_server(one_model, scenario, fast_path=fast_path, **settings)


def start(authority: Authority, capfd: pytest.CaptureFixture[str], *flags: str) -> str:
    assert distillery.main("distillery-serve", COMMANDS, default="serve", arguments=list(flags)) == 2
    first, *rest = capfd.readouterr().err.splitlines()
    assert rest == ["See distillery-serve --help"]
    return first.removeprefix("distillery-serve: ").replace(f"{authority.file.parent}/", "")


def test_an_unusable_certificate_is_an_error_at_the_start(
    authority: Authority, capfd: pytest.CaptureFixture[str]
) -> None:
    found = partial(start, authority, capfd)
    certificate, key = authority.certificate.read_text(), authority.key.read_text()
    assert found(*authority.flags[:2]) == "--tls-cert needs --tls-key as well; one file may hold both"
    assert found(*authority.flags[2:]) == "--tls-key needs --tls-cert as well; one file may hold both"
    for content, message in (
        (key, "--tls-cert cert.pem: expected a certificate in PEM form"),
        (certificate[:300], "--tls-cert cert.pem: expected a certificate in PEM form"),
        (certificate.replace("MII", "MMI", 1), "--tls-cert cert.pem: not a certificate: "),
        ("x" * 100_000, "--tls-cert cert.pem: has more than 65,536 bytes"),
    ):
        authority.certificate.write_text(content)
        assert found(*authority.flags).startswith(message)
    authority.certificate.write_text(certificate)
    encrypted = key.replace("PRIVATE", "ENCRYPTED PRIVATE")
    for content, message in (
        (certificate, "--tls-key key.pem: expected a private key in PEM form"),
        (encrypted.replace("EC ENCRYPTED", "ENCRYPTED"), "--tls-key key.pem: the key is encrypted; decrypt"),
        (key.replace("\nM", "\nN", 1), "--tls-key key.pem cannot be used with --tls-cert cert.pem: "),
    ):
        authority.key.write_text(content)
        assert found(*authority.flags).startswith(message)
        assert "PRIVATE KEY-----\n" not in message
    authority.issue()
    authority.certificate.write_text(certificate)
    assert found(*authority.flags).startswith(
        "--tls-key key.pem is not the key of --tls-cert cert.pem: key values mismatch"
    )
    for begins, ends, message in ((-20, -10, "expired on "), (5, 10, "valid only from ")):
        authority.issue(begins=begins, ends=ends)
        assert found(*authority.flags).startswith(f"--tls-cert cert.pem: {message}")
    authority.key.unlink()
    assert found(*authority.flags) == "--tls-key key.pem: No such file or directory"
