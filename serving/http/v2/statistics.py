"""The routes of Triton's statistics extension: `serving.engine.metrics.triton_statistics`.

GET /v2/models/stats
GET /v2/models/{model}[/versions/{version}]/stats
"""

from collections.abc import Iterable

from fastapi import FastAPI

from serving.engine.metrics.series import Metrics
from serving.engine.metrics.triton_statistics import Statistics, model_statistics
from serving.engine.models import ServedModels
from serving.http.guards import Guard
from serving.http.v2.routes import v2_router
from serving.model.repository import Manifest


def add_statistics_routes(app: FastAPI, models: ServedModels, metrics: Metrics, guard: Guard) -> None:
    """Add the routes to `app`, protected by `guard`; before `/v2/models/{model}`, which would match "stats" too."""
    every, one = v2_router("/models", guard), v2_router("/models/{model}", guard, 404)

    def of(manifests: Iterable[Manifest]) -> Statistics:
        return model_statistics(metrics, models.deployment.slots, manifests)

    @every.get("/stats", summary="Statistics of every version of every model")
    async def all_statistics() -> Statistics:
        return of(entry.manifest for entry in models.deployment.snapshot)

    @one.get("/stats", summary="Statistics of a model's versions")
    async def statistics(model: str) -> Statistics:
        deployment = models.deployment
        if model in deployment.snapshot.manifests:
            return of(deployment.snapshot.manifests[model].values())
        return of([deployment.manifest(model)])

    @one.get("/versions/{version}/stats", summary="Statistics of a version")
    async def versions_statistics(model: str, version: str) -> Statistics:
        return of([models.deployment.manifest(model, version)])

    app.include_router(every)
    app.include_router(one)
