"""Everything but predictions, on FastAPI: what is served, how it is, and what it counts."""

import hmac
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse
from fastapi.security import APIKeyHeader
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException

from serving.codecs.errors import RequestError, Unauthorized, UnknownModel, error_body
from serving.codecs.open_inference.rest import PREFIX as V2
from serving.codecs.open_inference.rest import error_body as v2_error_body
from serving.codecs.open_inference.rest import error_status as v2_error_status
from serving.codecs.schemas import ErrorAnswer, Health, ModelList
from serving.engine.metrics import exposition
from serving.model.repository import Manifest, ModelEntry, read_card

_api_key_header = APIKeyHeader(name="X-API-Key", auto_error=False)


def key_guard(api_key: str | None) -> dict[str, Any]:
    """What a route takes that is only for those who have the key, if there is one."""

    async def authorise(key: Annotated[str | None, Depends(_api_key_header)]) -> None:
        if api_key and not hmac.compare_digest((key or "").encode(), api_key.encode()):
            raise Unauthorized("the header X-API-Key is missing or wrong")

    return {"dependencies": [Depends(authorise)]} if api_key else {}


def add_routes(
    app: FastAPI, models: Mapping[str, ModelEntry], default: str, guard: Mapping[str, Any]
) -> None:
    """Add the routes to `app`, and give its errors the error body of their path. Raises `RepositoryError`.

    `guard` goes with the models; health, metrics and documentation stay open to whoever watches the service.
    """

    @app.get("/", include_in_schema=False)
    async def home() -> RedirectResponse:
        return RedirectResponse("docs")

    _add_model_routes(app, models, default, guard)

    @app.get("/health/live", tags=["health"], summary="Whether the service answers at all")
    async def live() -> Health:
        return Health(status="live")

    @app.get("/health/ready", tags=["health"], summary="Whether predictions are answered")
    async def ready() -> Health:
        return Health(status="ready")  # a process accepts connections only once its models are loaded

    @app.get(
        "/metrics",
        tags=["health"],
        summary="Counts and timings of all processes, for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        text = await run_in_threadpool(exposition, models.values())
        return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)

    app.add_exception_handler(RequestError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_http)
    app.add_exception_handler(Exception, _fail)


def _add_model_routes(
    app: FastAPI, models: Mapping[str, ModelEntry], default: str, guard: Mapping[str, Any]
) -> None:
    manifests = {name: entry.manifest for name, entry in models.items()}
    cards = {name: read_card(entry) for name, entry in models.items()}
    refusals: dict[int | str, dict[str, Any]] = {401: {"model": ErrorAnswer}} if guard else {}

    def known(model: str) -> str:
        if model not in models:
            raise UnknownModel(f"there is no model {model[:80]!r}; this service has {', '.join(models)}")
        return model

    @app.get("/models", tags=["models"], summary="Every model served", responses=refusals, **guard)
    async def list_models() -> ModelList:
        return ModelList(default=default, models=list(manifests.values()))

    @app.get(
        "/models/{model}",
        tags=["models"],
        summary="What one model is, scores and came from",
        responses=refusals | {404: {"model": ErrorAnswer}},
        **guard,
    )
    async def describe_model(model: str) -> Manifest:
        return manifests[known(model)]

    @app.get(
        "/models/{model}/card",
        tags=["models"],
        summary="The model's card: results, calibration, robustness, limitations, how it was made",
        response_class=Response,
        responses=refusals
        | {
            200: {"content": {"text/markdown": {"schema": {"type": "string"}}}},
            404: {"model": ErrorAnswer, "description": "no such model, or one without a card"},
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


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)  # noqa: S101 - FastAPI gives each handler its own kind
    headers = {name.decode(): value.decode() for name, value in error.headers}
    status = v2_error_status(type(error)) if _is_v2(request) else error.status
    return _answer(request, status, error.code, str(error), headers)


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    message = f"{request.method} {request.url.path[:80]}: {error.detail}; /docs lists what there is"
    return _answer(request, error.status_code, code, message, error.headers)


async def _fail(request: Request, error: Exception) -> Response:  # noqa: ARG001 - FastAPI's signature
    return _answer(request, 500, "internal_error", "the service failed; its log says why")


def _answer(
    request: Request, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    body = v2_error_body(message) if _is_v2(request) else error_body(code, message)
    return Response(body, status, headers, media_type="application/json")


def _is_v2(request: Request) -> bool:
    return f"{request.url.path}/".startswith(f"{V2}/")
