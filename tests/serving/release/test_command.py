"""`distillery-serve release` against real services: where they listen, TLS, the address file, errors."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import distillery
from serving.__main__ import COMMANDS
from tests.support.certificates import Authority
from tests.support.service import ROOT, Service, running_service

ANYWHERE = "0.0.0.0"  # noqa: S104
ENVIRONMENT = {"DISTILLERY_API_KEY": "secret"}


def release(*arguments: str) -> int:
    return distillery.main("distillery-serve", COMMANDS, arguments=["release", *arguments])


@pytest.fixture(params=["http", "https"])
def service(
    request: pytest.FixtureRequest, one_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Service]:
    """A service on all addresses; with https, its certificate is of an authority that nobody trusts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("DISTILLERY_API_KEY", "secret")
    flags: tuple[str, ...] = ("--host", ANYWHERE)
    if request.param == "https":
        authority = Authority(tmp_path)
        authority.issue()
        flags += authority.flags
    environment = ENVIRONMENT | {"TMPDIR": str(tmp_path)}
    with running_service(one_model, *flags, environment=environment) as service:
        assert service.url.startswith(f"{request.param}://{ANYWHERE}:")
        yield service


def test_a_service_on_all_addresses_is_reached_over_http_and_https(
    service: Service, capfd: pytest.CaptureFixture[str]
) -> None:
    loopback = service.url.replace(ANYWHERE, "127.0.0.1")
    for address in ([], ["--url", service.url], ["--url", loopback], ["--url", f"{loopback}/"]):
        assert release("show", *address) == 0
        assert capfd.readouterr().out == "stable     student/1\n"
    assert release("rollback", "--url", service.url) == 1
    assert "neither a candidate nor a previous stable version" in capfd.readouterr().err
    assert release("show", "--url", service.url, "--api-key", "wrong") == 1
    assert f"{service.url}: 401 " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://127.0.0.1", "is not the address of a service, such as http://127.0.0.1:8000"),
        ("http://127.0.0.1:port", "is not an address: Port could not be cast to integer value as 'port'"),
        ("http://127.0.0.1:9", "does not respond: "),
    ],
)
def test_an_address_without_a_service_is_named(
    url: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert release("show", "--url", url) == 1
    assert f"{url} {message}" in capfd.readouterr().err


def test_the_command_imports_neither_fastapi_nor_numpy() -> None:
    code = "import sys, serving.__main__; print({'fastapi', 'numpy', 'starlette'} & {*sys.modules})"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.stdout == "set()\n", found.stderr
