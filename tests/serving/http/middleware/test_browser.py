"""The service in a real browser without a network: `/docs` below prefixes, and pages of other origins."""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.support.service import Service, free_port, running_service

pytestmark = pytest.mark.browser


PAGE = """<!doctype html><body><script>
const image = Array.from({length: 28}, () => Array(28).fill(0));
const headers = {"Content-Type": "application/json", "X-API-Key": "none"};
fetch("%s/predict", {method: "POST", headers, body: JSON.stringify({image})})
    .then(async answer => answer.headers.get("Server-Timing") + JSON.stringify(await answer.json()))
    .catch(error => "blocked: " + error).then(text => { document.body.append(text); });
</script></body>"""
"""Shows what the browser lets it see of a prediction."""


@pytest.fixture(scope="module")
def origin() -> str:
    """The origin whose pages may use the service."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def prefixed(one_model: Path, origin: str) -> Iterator[Service]:
    flags = ("--api-servers", "1", "--root-path", "/digits", "--cors-origins", origin)
    with running_service(one_model, *flags) as service:
        yield service


class Site(BaseHTTPRequestHandler):
    """A site whose pages `page` returns, each with a type and a status."""

    def page(self) -> tuple[int, str, bytes, str | None]:
        """Return status, media type, content and `Location` of a path."""
        raise NotImplementedError

    def do_GET(self) -> None:
        status, kind, content, location = self.page()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(site: type[Site], port: int = 0) -> Iterator[str]:
    """Serve a site and yield its URL."""
    with ThreadingHTTPServer(("127.0.0.1", port), site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
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
        "--enable-logging=stderr",
        "--virtual-time-budget=20000",
        "--dump-dom",
        url,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    assert "Content Security Policy" not in done.stderr  # as the console names what it has blocked
    return done.stdout


@pytest.mark.parametrize("path", ["/docs", "/docs/", "/digits/docs"])
def test_the_documentation_shows_all_routes(prefixed: Service, tmp_path: Path, path: str) -> None:
    page = rendered(f"{prefixed.url}{path}", tmp_path)
    for route in ("/predict", "/models", "/v2/models/"):
        assert f'data-path="{route}' in page
    assert "Failed to load API definition" not in page


def test_the_documentation_works_below_a_prefix_that_the_service_does_not_know(
    prefixed: Service, tmp_path: Path
) -> None:
    class Proxy(Site):
        """Removes another prefix."""

        def page(self) -> tuple[int, str, bytes, str | None]:
            answer = httpx.get(prefixed.url + self.path.removeprefix("/unknown"))
            status = answer.status_code if self.path.startswith("/unknown/") else 404
            return status, answer.headers["Content-Type"], answer.content, answer.headers.get("Location")

    with serving(Proxy) as url:
        assert 'data-path="/predict"' in rendered(f"{url}/unknown/docs", tmp_path)


def test_a_page_sees_predictions_only_if_its_origin_is_named(
    prefixed: Service, origin: str, tmp_path: Path
) -> None:
    class Page(Site):
        def page(self) -> tuple[int, str, bytes, str | None]:
            return 200, "text/html", (PAGE % prefixed.url).encode(), None

    with serving(Page, int(origin.rpartition(":")[2])) as named, serving(Page) as other:
        assert named == origin
        seen = rendered(named, tmp_path)
        assert "decode;dur=" in seen
        assert '"predictions":' in seen
        assert "blocked: TypeError" in rendered(other, tmp_path)
