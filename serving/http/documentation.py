"""The documentation of the API: `/docs` and `/openapi.json`.

The page loads nothing from another host, so that it works in a closed network: the files of Swagger UI are those of
the package fastapi-offline. All of its URLs are relative, so that it works under any prefix of a proxy.
"""

import gzip
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from threading import RLock
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from serving.http.guards import Guards
from serving.http.middleware.normalise import PUBLIC
from serving.http.middleware.security_headers import page_policy

_SCRIPT, _STYLE = "swagger-ui-bundle.js", "swagger-ui.css"
_MEDIA_TYPES = {_SCRIPT: "text/javascript", _STYLE: "text/css"}


@cache
def _compressed(name: str) -> bytes:
    """Return a file of Swagger UI. To compress one takes 0.1 s, too long for the event loop and for every request."""
    return gzip.compress((files("fastapi_offline") / "static" / name).read_bytes(), mtime=0)


def add_documentation(app: FastAPI, guards: Guards, describe: Callable[[], None]) -> None:
    """Replace FastAPI's documentation routes, whose pages load their files from a public network.

    `describe` adds to `app.openapi()` what FastAPI does not know.
    """
    _describe_on_request(app, describe)
    own = {app.openapi_url, app.docs_url, app.redoc_url, app.swagger_ui_oauth2_redirect_url}
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) not in own]

    @app.get("/openapi.json", include_in_schema=False, **guards.docs)
    async def document(request: Request) -> Response:
        public: str = request.scope["root_path"]
        if request.scope.get(PUBLIC):
            public = str(request.base_url).rstrip("/")
        servers = {"servers": [{"url": public}]} if public else {}
        return JSONResponse(servers | await run_in_threadpool(app.openapi))

    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=app.title,
        swagger_js_url=f"docs/{_SCRIPT}",
        swagger_css_url=f"docs/{_STYLE}",
        swagger_favicon_url="data:,",  # none
        swagger_ui_parameters={"validatorUrl": None},  # of another host
    )
    page.headers["Content-Security-Policy"] = page_policy(bytes(page.body))

    @app.get("/docs", include_in_schema=False, **guards.docs)
    async def docs(request: Request) -> Response:
        if request.scope.get("raw_path", b"").endswith(b"/"):  # below which its relative URLs would be wrong
            return RedirectResponse("../docs")
        return page

    @app.get("/docs/{name}", include_in_schema=False, **guards.docs)
    async def file(name: str, request: Request) -> Response:
        if name not in _MEDIA_TYPES:
            raise HTTPException(404)
        content = await run_in_threadpool(_compressed, name)
        headers = {"Cache-Control": "max-age=3600", "Vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
        else:
            content = await run_in_threadpool(gzip.decompress, content)
        return Response(content, headers=headers, media_type=_MEDIA_TYPES[name])


def _describe_on_request(app: FastAPI, describe: Callable[[], None]) -> None:
    """Make the document when it is first requested, which takes 0.2 s, rather than at every start."""
    of_fastapi, lock = app.openapi, RLock()

    def openapi() -> dict[str, Any]:
        with lock:  # held until the document is complete; `describe` enters it again
            if app.openapi_schema is None:
                of_fastapi()
                describe()
            return of_fastapi()

    app.openapi = openapi  # type: ignore[method-assign] # as FastAPI's documentation does
