"""The FastAPI routes below /v2: health, metadata, configuration, repository index.

`serving.http.prediction_routes` serves inference. Of several versions of a model only the highest is served,
which is Triton's default; others are status 404.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI

from serving.codecs.errors import InvalidInput
from serving.codecs.open_inference.config import PLATFORM, model_config
from serving.codecs.open_inference.rest import PREFIX, find_model
from serving.codecs.open_inference.schemas import (
    InferError,
    ModelMetadata,
    ModelReady,
    RepositoryEntry,
    ServerLive,
    ServerMetadata,
    ServerReady,
)
from serving.http.guards import KEY_STATUSES, Guard, Guards
from serving.model.repository import Manifest, ModelEntry

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"]
"""Triton's names of the extensions."""

Finder = Callable[..., Awaitable[Manifest]]


def add_v2_routes(
    app: FastAPI,
    models: Mapping[str, ModelEntry],
    guards: Guards,
    check_ready: Callable[[], None],
    *,
    max_images: int,
) -> None:
    """Add the routes to `app`. `check_ready` raises `NotReady`."""
    manifests = {name: entry.manifest for name, entry in models.items()}

    async def latest(model: str) -> Manifest:
        return find_model(manifests, model)

    async def exact(model: str, version: str) -> Manifest:
        return find_model(manifests, model, version)

    _add_server_routes(app, guards, check_ready)
    _add_repository_routes(app, manifests, guards.models)
    for path, find in (("", latest), ("/versions/{version}", exact)):
        _add_model_routes(app, f"/models/{{model}}{path}", find, guards.models, max_images=max_images)


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


def _add_repository_routes(app: FastAPI, manifests: Mapping[str, Manifest], guard: Guard) -> None:
    repository, loading = v2_router("/repository", guard), v2_router("/repository/models", guard, 400)

    @repository.post("/index", summary="All models; every one is ready")
    async def index() -> list[RepositoryEntry]:
        return [
            RepositoryEntry(name=manifest.name, version=manifest.version, state="READY")
            for manifest in manifests.values()
        ]

    @loading.post("/{model}/load", summary="Rejected: models are loaded when the service starts")
    async def load(model: str) -> None:
        raise _unchangeable(model)

    @loading.post("/{model}/unload", summary="Rejected: models stay loaded while the service runs")
    async def unload(model: str) -> None:
        raise _unchangeable(model)

    app.include_router(repository)
    app.include_router(loading)


def _add_model_routes(app: FastAPI, path: str, find: Finder, guard: Guard, *, max_images: int) -> None:
    router = v2_router(path, guard, 404)

    @router.get("", summary="Inputs and outputs of a model")
    async def metadata(model: Annotated[Manifest, Depends(find)]) -> ModelMetadata:
        return ModelMetadata(
            name=model.name,
            versions=[model.version],
            platform=PLATFORM,
            inputs=list(model.inputs),
            outputs=list(model.served_outputs),
        )

    @router.get("/ready", summary="Readiness of a model")
    async def ready(model: Annotated[Manifest, Depends(find)]) -> ModelReady:
        return ModelReady(name=model.name, ready=True)

    @router.get("/config", summary="Configuration of a model, in Triton's form")
    async def config(model: Annotated[Manifest, Depends(find)]) -> dict[str, Any]:
        return model_config(model, max_images)

    app.include_router(router)


def _unchangeable(model: str) -> InvalidInput:
    return InvalidInput(
        f"model {model[:80]!r} cannot be loaded or unloaded while the service runs; "
        "change the model repository and restart the service"
    )
