"""The routes of the web page: `/`, and its files below `/page`.

The page is plain HTML, CSS and ES modules, served as they are in `files`. It loads nothing from another host, contains
no inline script or style, and all of its URLs are relative, so that it works under any prefix of a proxy. It uses the
same API as every other client.
"""

import gzip
import hashlib
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException

from serving.http.guards import Guards

HOME = "index.html"
DIGITS = "digits.bin"
"""Test digits: `serving.http.page.draw_digits`."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_MEDIA_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
    "bin": "application/octet-stream",
}


class File(NamedTuple):
    """A file of the page, compressed."""

    media_type: str
    compressed: bytes
    etag: str
    """Weak: the same for both encodings."""

    def response(self, request: Request) -> Response:
        """Return the file, or status 304 to a browser that has it; every use is revalidated."""
        headers = {"ETag": self.etag, "Cache-Control": "no-cache", "Vary": "Accept, Accept-Encoding"}
        if self.media_type == _MEDIA_TYPES["html"]:
            headers["Content-Security-Policy"] = POLICY
        known = {tag.strip() for tag in request.headers.get("if-none-match", "").split(",")}
        if self.etag in known:
            return Response(status_code=304, headers=headers)
        content = self.compressed
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
        else:
            content = gzip.decompress(content)
        return Response(content, headers=headers, media_type=self.media_type)


@cache
def page_files() -> dict[str, File]:
    """Read all files of the page: what is not among them is not served."""
    found = {}
    for path in files("serving.http.page").joinpath("files").iterdir():
        suffix = path.name.rpartition(".")[2]
        if suffix in _MEDIA_TYPES:
            content = path.read_bytes()
            compressed = content if path.name == DIGITS else gzip.compress(content, mtime=0)
            etag = f'W/"{hashlib.sha256(content).hexdigest()[:16]}"'
            found[path.name] = File(_MEDIA_TYPES[suffix], compressed, etag)
    return found


def add_page(app: FastAPI, guards: Guards, facts: Callable[[], dict[str, Any]]) -> None:
    """Serve the page; `facts` returns what it needs to know of the service before its first request.

    It contains nothing that `/docs` does not, and needs a key if that does.
    """

    @app.get("/", include_in_schema=False, **guards.docs)
    def home(
        request: Request,
    ) -> Response:  # not async, nor are the others: the first reads and compresses all files
        path: bytes = request.scope.get("raw_path", b"")
        if path and not path.endswith(b"/"):  # where its relative URLs would be wrong: below a prefix
            return RedirectResponse(f"{path.rpartition(b'/')[2].decode('latin-1')}/")
        if not _accepts_html(request.headers.get("accept", "")):
            return to_documentation(request)
        return page_files()[HOME].response(request)

    @app.get("/page/service.json", include_in_schema=False, **guards.docs)
    async def service() -> Response:
        return JSONResponse(facts(), headers={"Cache-Control": "no-cache"})

    @app.get("/page/{name}", include_in_schema=False, **guards.docs)
    def file(name: str, request: Request) -> Response:
        if name == HOME or name not in page_files():
            raise HTTPException(404)
        return page_files()[name].response(request)


def add_documentation_redirect(app: FastAPI) -> None:
    """Redirect `/` to `/docs`, without the page."""

    @app.get("/", include_in_schema=False)
    async def home(request: Request) -> Response:
        return to_documentation(request)


def to_documentation(request: Request) -> Response:
    """Redirect from `/` to `/docs`: of clients that read no HTML, and without the page."""
    prefix = request.scope["root_path"]  # that a proxy has removed may be unknown to us
    return RedirectResponse(f"{prefix}/docs" if prefix else "docs", headers={"Vary": "Accept"})


def _accepts_html(accept: str) -> bool:
    kinds = {kind.partition(";")[0].strip().lower() for kind in accept.split(",")}
    return not accept.strip() or bool(kinds & {"text/html", "text/*", "*/*"})
