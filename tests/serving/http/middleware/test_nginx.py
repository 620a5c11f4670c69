"""The service behind a real nginx with TLS, configured by deploy/nginx and as docs/operations.md shows."""

import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest

from benchmarks.cluster.balancers import with_servers
from tests.support.documents.markdown import blocks
from tests.support.requests.ambiguous import AMBIGUOUS, CLEAR, SECOND
from tests.support.service import ROOT, eventually, free_port, running_service
from tests.support.training.samples import sample_test

pytestmark = pytest.mark.nginx

ONE = {"image": sample_test().images[0].tolist()}


class Proxy(NamedTuple):
    """A proxy in front of a service; `service_port` is that of the service."""

    client: httpx.Client
    service_port: int
    certificate: Path


@pytest.fixture(scope="module")
def proxy(one_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    if not shutil.which("nginx"):
        pytest.skip("needs Debian's nginx-light: make system")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    flags = ("--api-servers", "1", "--root-path", "/digits", "--trusted-proxies", "127.0.0.1")
    with running_service(one_model, *flags) as service:
        service_port = httpx.URL(service.url).port
        assert service_port
        certificate = make_certificate(folder)
        (folder / "nginx.conf").write_text(configuration(folder, port, service_port))
        command = ["nginx", "-p", str(folder), "-e", "stderr", "-c", "nginx.conf"]
        nginx = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            trust = ssl.create_default_context(cafile=str(certificate))
            with httpx.Client(base_url=f"https://localhost:{port}", verify=trust, timeout=20) as client:
                eventually(lambda: accepts(port) or nginx.poll() is not None)
                assert nginx.poll() is None, nginx.communicate()[1]
                yield Proxy(client, service_port, certificate)
        finally:
            nginx.terminate()
            nginx.communicate(timeout=20)


def make_certificate(folder: Path) -> Path:
    """Write `key.pem` and `certificate.pem` for localhost; return the latter."""
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    files = ("-keyout", "key.pem", "-out", "certificate.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names, *files]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "certificate.pem"


def configuration(folder: Path, port: int, service_port: int) -> str:
    """Return the upstream of deploy/nginx with the location of the documents, and one that removes the prefix."""
    [location] = [one.text for one in blocks(ROOT / "docs/operations.md") if one.language == "nginx"]
    (folder / "distillery").mkdir()
    shutil.copy(ROOT / "deploy/nginx/proxy.conf", folder / "distillery")
    shipped = (ROOT / "deploy/nginx/distillery.conf").read_text()
    upstream = with_servers(shipped, f"    server 127.0.0.1:{service_port}").partition("\nserver {")[0]
    removing = location.replace("/digits/", "/removed/").replace("http://distillery;", "http://distillery/;")
    assert removing.count("http://distillery/;") == 1
    return f"""
daemon off;
master_process off;  # as our user, who may write to the folder
pid nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    {upstream}
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate certificate.pem;
        ssl_certificate_key key.pem;
        {location}
        {removing}
    }}
}}
"""


def accepts(port: int) -> bool:
    try:
        httpx.get(f"http://localhost:{port}")
    except httpx.TransportError:
        return False
    return True


def test_every_route_works_below_the_prefix(proxy: Proxy) -> None:
    client = proxy.client
    for prefix in ("/digits", "/removed"):
        for path in ("/predict", "/predict/", "/predict/student"):
            assert client.post(f"{prefix}{path}", json=ONE).json()["predictions"][0]["digit"] in range(10)
        assert client.head(f"{prefix}/models").status_code == 200
        assert client.get(f"{prefix}/v2/models/student/").json()["name"] == "student"
        assert client.get(f"{prefix}/docs/swagger-ui.css").status_code == 200
        offer = {
            "Connection": "Upgrade, HTTP2-Settings",
            "Upgrade": "h2c",
            "HTTP2-Settings": "AAMAAABkAAQAoAAA",
        }
        assert client.post(f"{prefix}/predict", json=ONE, headers=offer).status_code == 200
        pieces = (json.dumps(ONE).encode(), *[b" " * 100_000] * 20)
        assert client.post(f"{prefix}/predict", content=iter(pieces)).status_code == 200


def test_redirects_and_the_document_lead_to_the_public_url(proxy: Proxy) -> None:
    public = f"{str(proxy.client.base_url).rstrip('/')}/digits"
    for accepted, place in (("text/html", "/"), ("application/json", "/docs")):
        home = proxy.client.get("/digits/", headers={"Accept": accepted}, follow_redirects=True)
        assert (home.url, home.status_code) == (f"{public}{place}", 200)
    module = proxy.client.get("/digits/page/main.js")
    assert (module.status_code, module.headers["content-type"].partition(";")[0]) == (200, "text/javascript")
    document = proxy.client.get("/digits/openapi.json").json()
    assert document["servers"] == [{"url": public}]


def test_connections_to_the_service_are_kept_and_reused(proxy: Proxy) -> None:
    for _ in range(30):
        assert proxy.client.post("/digits/predict", json=ONE).status_code == 200
    time.sleep(6)  # longer than uvicorn's own default
    kept = [
        connection
        for connection in psutil.net_connections("tcp")
        if connection.raddr and connection.raddr.port == proxy.service_port
        if connection.status == psutil.CONN_ESTABLISHED
    ]
    assert len(kept) == 1


def test_an_ambiguous_request_leaves_no_request_behind_on_the_connection_to_the_service(proxy: Proxy) -> None:
    context = ssl.create_default_context(cafile=str(proxy.certificate))
    port = proxy.client.base_url.port
    assert port
    expected = proxy.client.post("/digits/predict", json=ONE).json()["predictions"]

    def statuses(data: bytes) -> list[int]:
        plain = socket.create_connection(("127.0.0.1", port), timeout=20)
        with context.wrap_socket(plain, server_hostname="localhost") as connection:
            connection.sendall(data.replace(b"/predict", b"/digits/predict") + SECOND)
            found = b"".join(iter(lambda: connection.recv(65_536), b""))
        return [int(response.split()[0]) for response in found.split(b"HTTP/1.1 ")[1:]]

    for name, data in (AMBIGUOUS | CLEAR).items():
        found = statuses(data)
        # nginx rejects it, or passes on what it has understood; the second request is not below /digits
        assert found in ([400], [200, 404], [400, 404], [501]), (name, found)
        if name in {
            "length",
            "chunks",
            "trailers",
            "chunk extension",
        }:  # nginx is stricter than we about the others
            assert found == [200, 404], name
        after = proxy.client.post("/digits/predict", json=ONE)
        assert after.json()["predictions"] == expected, name
