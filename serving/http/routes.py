"""The FastAPI routes: models, health and metrics. `serving.http.prediction_routes` serves predictions."""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from serving.codecs.errors import RequestError, error_body
from serving.codecs.open_inference.rest import PREFIX as V2
from serving.codecs.open_inference.rest import error_body as v2_error_body
from serving.codecs.open_inference.rest import error_status as v2_error_status
from serving.codecs.schemas import ErrorAnswer, Health, ModelList
from serving.engine.metrics.exposition import OPENMETRICS, PLAIN, Exposition, content_type
from serving.engine.models import ServedModels
from serving.http.guards import KEY_STATUSES, Guard, Guards
from serving.model.repository import Manifest


def add_routes(
    app: FastAPI,
    models: ServedModels,
    exposition: Exposition,
    guards: Guards,
    check_ready: Callable[[], None],
) -> None:
    """Add the routes and the error handlers to `app`.

    `check_ready` raises `NotReady`.
    """
    _add_model_routes(app, models, guards.models)
    health, metrics_errors = _key_errors(guards.health), _key_errors(guards.metrics)

    @app.get(
        "/health/live", tags=["health"], summary="Liveness of the service", responses=health, **guards.health
    )
    async def live() -> Health:
        return Health(status="live")

    @app.get(
        "/health/ready",
        tags=["health"],
        summary="Readiness for predictions: not during a shutdown, nor while a model has no worker",
        responses=health | {503: {"model": ErrorAnswer}},
        **guards.health,
    )
    async def ready() -> Health:
        check_ready()
        return Health(status="ready")

    @app.get(
        "/metrics",
        tags=["health"],
        summary="Metrics of all processes, for Prometheus",
        response_class=Response,
        responses=metrics_errors
        | {
            200: {
                "content": {
                    kind.partition(";")[0]: {"schema": {"type": "string"}} for kind in (PLAIN, OPENMETRICS)
                }
            }
        },
        **guards.metrics,
    )
    async def metrics(request: Request) -> Response:
        kind = content_type(request.headers.get("accept", ""))
        return Response(exposition.text(kind), headers={"Vary": "Accept"}, media_type=kind)

    app.add_exception_handler(RequestError, _request_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)


def _key_errors(guard: Guard) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer} for status in KEY_STATUSES} if guard else {}


def _add_model_routes(app: FastAPI, models: ServedModels, guard: Guard) -> None:
    errors = _key_errors(guard)
    missing: dict[int | str, dict[str, Any]] = {404: {"model": ErrorAnswer}}

    @app.get(
        "/models",
        tags=["models"],
        summary="All models, each in its highest version",
        responses=errors,
        **guard,
    )
    async def list_models() -> ModelList:
        deployment = models.deployment
        return ModelList(
            default=deployment.default,
            models=[entry.manifest for entry in deployment.snapshot.latest.values()],
        )

    async def latest(model: str) -> Manifest:
        return models.deployment.manifest(model)

    async def exact(model: str, version: str) -> Manifest:
        return models.deployment.manifest(model, version)

    def add(path: str, find: Callable[..., Awaitable[Manifest]], of: str) -> None:
        @app.get(
            f"/models/{{model}}{path}",
            tags=["models"],
            summary=f"Architecture, test results and origin of a {of}",
            responses=errors | missing,
            **guard,
        )
        async def describe_model(manifest: Annotated[Manifest, Depends(find)]) -> Manifest:
            return manifest

        @app.get(
            f"/models/{{model}}{path}/card",
            tags=["models"],
            summary=f"Card of a {of}: results, calibration, robustness, limitations, training",
            response_class=Response,
            responses=errors
            | {
                200: {"content": {"text/markdown": {"schema": {"type": "string"}}}},
                404: {"model": ErrorAnswer, "description": "unknown model, or a model without a card"},
            },
            **guard,
        )
        async def show_card(manifest: Annotated[Manifest, Depends(find)]) -> Response:
            entry = models.deployment.snapshot.versions[manifest.name][manifest.version]
            if entry.card is None:
                raise HTTPException(
                    404,
                    f"{manifest.name} has no model card; `distillery-train report` writes it, "
                    "`distillery-export` publishes it",
                )
            return Response(entry.card, media_type="text/markdown")

    add("", latest, "model")
    add("/versions/{version}", exact, "version of a model")


async def _request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)  # noqa: S101 - FastAPI calls each handler with its own type
    headers = {name.decode(): value.decode() for name, value in error.headers}
    status = v2_error_status(type(error)) if _is_v2(request) else error.status
    return _error_response(request, status, error.code, str(error), headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    message = f"{request.method} {request.url.path[:80]}: {error.detail}; /docs lists all routes"
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(sorted(_allowed_methods(request))) or headers.get("Allow", "")
    return _error_response(request, error.status_code, code, message, headers)


def _allowed_methods(request: Request) -> set[str]:
    """Return the methods of all routes of a path; starlette names those of the first one."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] != Match.NONE]
    methods = {method for route in routes for method in getattr(route, "methods", None) or ()}
    return (
        methods | {"HEAD"} if "GET" in methods else methods
    )  # `serving.http.middleware.normalise` routes it like GET


async def _internal_error(request: Request, error: Exception) -> Response:  # noqa: ARG001 - FastAPI's signature
    return _error_response(request, 500, "internal_error", "the service failed; its log says why")


def _error_response(
    request: Request, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    body = v2_error_body(message) if _is_v2(request) else error_body(code, message)
    return Response(body, status, headers, media_type="application/json")


def _is_v2(request: Request) -> bool:
    path: str = request.scope["path"].removeprefix(request.scope["root_path"])
    return f"{path}/".startswith(f"{V2}/")
