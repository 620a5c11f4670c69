"""The FastAPI routes below /v2: health, metadata, configuration, repository index.

`serving.http.prediction_routes` serves inference. A model's version policy says which of its versions are served
(`serving.model.versions`); others are status 404. Without a version, the highest one is meant.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, FastAPI, Request

from serving.codecs.errors import InvalidInput
from serving.codecs.open_inference.config import model_config, platform
from serving.codecs.open_inference.repository import check_parameters
from serving.codecs.open_inference.rest import PREFIX
from serving.codecs.open_inference.schemas import (
    InferError,
    ModelMetadata,
    ModelReady,
    RepositoryEntry,
    ServerLive,
    ServerMetadata,
    ServerReady,
)
from serving.engine.models import Change, ServedModels
from serving.http.bodies import BodyReader
from serving.http.guards import KEY_STATUSES, Guard, Guards
from serving.model.repository import Manifest

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"]
"""Triton's names of the extensions."""


Finder = Callable[..., Awaitable[Manifest]]


def add_v2_routes(
    app: FastAPI,
    models: ServedModels,
    guards: Guards,
    check_ready: Callable[[], None],
    change: Change,
    bodies: BodyReader,
    *,
    max_images: int,
) -> None:
    """Add the routes to `app`. `check_ready` raises `NotReady`; `change` has the parent process change the models."""

    async def latest(model: str) -> Manifest:
        return models.deployment.manifest(model)

    async def exact(model: str, version: str) -> Manifest:
        return models.deployment.manifest(model, version)

    _add_server_routes(app, guards, check_ready)
    _add_repository_routes(app, models, guards, change, bodies)
    for path, find in (("", latest), ("/versions/{version}", exact)):
        router = v2_router(f"/models/{{model}}{path}", guards.models, 404)
        _add_model_routes(router, models, find, max_images=max_images)
        app.include_router(router)


def v2_router(path: str, guard: Guard, *errors: int) -> APIRouter:
    """Return a router for `/v2{path}`; `errors` are its possible error statuses besides those of the guard."""
    statuses = (*KEY_STATUSES, *errors) if guard else errors
    responses: dict[int | str, dict[str, Any]] = {status: {"model": InferError} for status in statuses}
    return APIRouter(prefix=f"{PREFIX}{path}", tags=["Open Inference Protocol"], responses=responses, **guard)


def _add_server_routes(app: FastAPI, guards: Guards, check_ready: Callable[[], None]) -> None:
    server, health = v2_router("", guards.models), v2_router("/health", guards.health, 503)

    @server.get("", summary="Name, version and extensions")
    async def metadata() -> ServerMetadata:
        return ServerMetadata(name="distillery", version=app.version, extensions=EXTENSIONS)

    @health.get("/live", summary="Liveness of the service")
    async def live() -> ServerLive:
        return ServerLive(live=True)

    @health.get("/ready", summary="Readiness for inference")
    async def ready() -> ServerReady:
        check_ready()
        return ServerReady(ready=True)

    app.include_router(server)
    app.include_router(health)


def _add_repository_routes(
    app: FastAPI, models: ServedModels, guards: Guards, change: Change, bodies: BodyReader
) -> None:
    repository = v2_router("/repository", guards.models, 400, 408, 413)
    loading = v2_router("/repository/models", guards.admin, 400, 404, 408, 413, 503)

    @repository.post("/index", summary="All versions of all models, and why some are not served")
    async def index(request: Request) -> list[RepositoryEntry]:
        wanted = await bodies.read(request)
        only_ready = bool(wanted) and _ready_only(wanted)
        return [
            RepositoryEntry(**entry._asdict())
            for entry in models.deployment.index()
            if entry.state == "READY" or not only_ready
        ]

    @loading.post("/{model}/load", summary="Load a model, or what has changed of it, in all processes")
    async def load(model: str, request: Request) -> None:
        check_parameters("load", _parameters(await bodies.read(request)))
        await change("load", model=model)

    @loading.post("/{model}/unload", summary="Stop serving a model, in all processes")
    async def unload(model: str, request: Request) -> None:
        check_parameters("unload", _parameters(await bodies.read(request)))
        await change("unload", model=model)

    app.include_router(repository)
    app.include_router(loading)


def _parameters(body: bytes) -> dict[str, object]:
    """Return the parameters of a change. Raises `InvalidInput`."""
    if not body:
        return {}
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidInput("the body is not JSON; expected nothing") from None
    parameters = document.get("parameters", {}) if isinstance(document, dict) else None
    if not isinstance(parameters, dict):
        raise InvalidInput("expected no body, or a JSON object")
    return parameters


def _ready_only(body: bytes) -> bool:
    """Return the field `ready` of an index request. Raises `InvalidInput`."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidInput('the body is not JSON; expected nothing, or {"ready": true}') from None
    ready = document.get("ready", False) if isinstance(document, dict) else None
    if not isinstance(ready, bool):
        raise InvalidInput('expected no body, or {"ready": true}')
    return ready


def _add_model_routes(router: APIRouter, models: ServedModels, find: Finder, *, max_images: int) -> None:
    @router.get("", summary="Inputs and outputs of a model")
    async def metadata(model: Annotated[Manifest, Depends(find)]) -> ModelMetadata:
        return ModelMetadata(
            name=model.name,
            versions=[*models.deployment.snapshot.manifests[model.name]],
            platform=platform(model),
            inputs=list(model.inputs),
            outputs=list(model.served_outputs),
        )

    @router.get("/ready", summary="Readiness of a model")
    async def ready(model: Annotated[Manifest, Depends(find)]) -> ModelReady:
        return ModelReady(name=model.name, ready=True)

    @router.get("/config", summary="Configuration of a model, in Triton's form")
    async def config(model: Annotated[Manifest, Depends(find)]) -> dict[str, Any]:
        policy = models.deployment.snapshot.policies[model.name]
        return model_config(model, policy, max_images)
