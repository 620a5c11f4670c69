"""`/docs` in a real browser without a network, below a prefix that the service knows and below one it does not."""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.service import Service, running_service

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def prefixed(one_model: Path) -> Iterator[Service]:
    with running_service(one_model, "--api-servers", "1", "--root-path", "/digits") as service:
        yield service


@pytest.fixture
def removing_proxy(prefixed: Service) -> Iterator[str]:
    """The URL of a proxy that removes another prefix before it passes a request on."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            service = HTTPConnection(prefixed.url.removeprefix("http://"))
            service.request("GET", self.path.removeprefix("/unknown"))
            answer = service.getresponse()
            content = answer.read()
            service.close()
            self.send_response(answer.status if self.path.startswith("/unknown/") else 404)
            for name in ("Content-Type", "Location"):
                if value := answer.getheader(name):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/unknown"
        server.shutdown()


def rendered(url: str, profile: Path) -> str:
    """Return the document of a page after its scripts have run, in a browser that reaches this machine only."""
    if not shutil.which("chromium"):
        pytest.skip("needs Debian's chromium: make system")
    isolation = (
        "--no-sandbox",
        f"--user-data-dir={profile}",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    )
    command = [
        "chromium",
        "--headless",
        "--disable-gpu",
        *isolation,
        "--virtual-time-budget=20000",
        "--dump-dom",
        url,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout


@pytest.mark.parametrize("path", ["/", "/docs/", "/digits/"])
def test_the_documentation_shows_all_routes(prefixed: Service, tmp_path: Path, path: str) -> None:
    page = rendered(f"{prefixed.url}{path}", tmp_path)
    for route in ("/predict", "/models", "/v2/models/"):
        assert f'data-path="{route}' in page
    assert "Failed to load API definition" not in page


def test_the_documentation_works_below_a_prefix_that_the_service_does_not_know(
    removing_proxy: str, tmp_path: Path
) -> None:
    assert 'data-path="/predict"' in rendered(f"{removing_proxy}/docs", tmp_path)
