"""Headers that keep browsers from misusing responses."""

import httpx
import pytest

from tests.support.service import Service


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/page/main.js",
        "/docs",
        "/docs/swagger-ui.css",
        "/openapi.json",
        "/models",
        "/metrics",
        "/nowhere",
        "/v2/none",
    ],
)
def test_no_response_is_framed_sniffed_or_a_source_of_scripts(service: Service, path: str) -> None:
    for method in ("GET", "HEAD"):
        headers = httpx.request(method, service.url + path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
        assert (policy["default-src"], policy["frame-ancestors"]) == ("'none'", "'none'")
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert ("script-src" in policy) == (path in {"/", "/docs"})
        assert "Strict-Transport-Security" not in headers  # only with TLS
