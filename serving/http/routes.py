"""The FastAPI routes: models, health and metrics. `serving.http.prediction_routes` serves predictions."""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from serving.codecs.errors import RequestError, error_body, unknown_model
from serving.codecs.open_inference.rest import PREFIX as V2
from serving.codecs.open_inference.rest import error_body as v2_error_body
from serving.codecs.open_inference.rest import error_status as v2_error_status
from serving.codecs.schemas import ErrorAnswer, Health, ModelList
from serving.engine.metrics.exposition import OPENMETRICS, PLAIN, Exposition, content_type
from serving.http.guards import KEY_STATUSES, Guard, Guards
from serving.model.repository import Manifest, ModelEntry, read_card


def add_routes(
    app: FastAPI,
    models: Mapping[str, ModelEntry],
    default: str,
    exposition: Exposition,
    guards: Guards,
    check_ready: Callable[[], None],
) -> None:
    """Add the routes and the error handlers to `app`. Raises `RepositoryError`.

    `check_ready` raises `NotReady`.
    """
    _add_model_routes(app, models, default, guards.models)
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


def _add_model_routes(app: FastAPI, models: Mapping[str, ModelEntry], default: str, guard: Guard) -> None:
    manifests = {name: entry.manifest for name, entry in models.items()}
    cards = {name: read_card(entry) for name, entry in models.items()}
    errors = _key_errors(guard)

    def known(model: str) -> str:
        if model not in models:
            raise unknown_model(model, models)
        return model

    @app.get("/models", tags=["models"], summary="All models", responses=errors, **guard)
    async def list_models() -> ModelList:
        return ModelList(default=default, models=list(manifests.values()))

    @app.get(
        "/models/{model}",
        tags=["models"],
        summary="Architecture, test results and origin of a model",
        responses=errors | {404: {"model": ErrorAnswer}},
        **guard,
    )
    async def describe_model(model: str) -> Manifest:
        return manifests[known(model)]

    @app.get(
        "/models/{model}/card",
        tags=["models"],
        summary="Model card: results, calibration, robustness, limitations, training",
        response_class=Response,
        responses=errors
        | {
            200: {"content": {"text/markdown": {"schema": {"type": "string"}}}},
            404: {"model": ErrorAnswer, "description": "unknown model, or a model without a card"},
        },
        **guard,
    )
    async def show_card(model: str) -> Response:
        if (card := cards[known(model)]) is None:
            raise HTTPException(
                404,
                f"{model} has no model card; `distillery-train report` writes it, `distillery-export` publishes it",
            )
        return Response(card, media_type="text/markdown")


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
    if headers.get("Allow") == "GET":
        headers["Allow"] = "GET, HEAD"  # `serving.http.middleware.normalise` routes it like GET
    return _error_response(request, error.status_code, code, message, headers)


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
