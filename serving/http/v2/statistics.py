"""The routes of Triton's statistics extension: `serving.engine.metrics.triton_statistics`.

GET /v2/models/stats
GET /v2/models/{model}[/versions/{version}]/stats
"""

from collections.abc import Mapping

from fastapi import FastAPI

from serving.codecs.open_inference.rest import find_model
from serving.engine.metrics.series import Metrics
from serving.engine.metrics.triton_statistics import Statistics, model_statistics
from serving.http.guards import Guard
from serving.http.v2.routes import v2_router
from serving.model.repository import ModelEntry


def add_statistics_routes(
    app: FastAPI, models: Mapping[str, ModelEntry], metrics: Metrics, guard: Guard
) -> None:
    """Add the routes to `app`, protected by `guard`; before `/v2/models/{model}`, which would match "stats" too."""
    manifests = {name: entry.manifest for name, entry in models.items()}
    every, one = v2_router("/models", guard), v2_router("/models/{model}", guard, 404)

    @every.get("/stats", summary="Statistics of every model")
    async def all_statistics() -> Statistics:
        return model_statistics(metrics, manifests.values())

    @one.get("/stats", summary="Statistics of a model")
    async def statistics(model: str) -> Statistics:
        return model_statistics(metrics, [find_model(manifests, model)])

    @one.get("/versions/{version}/stats", summary="Statistics of a version")
    async def versions_statistics(model: str, version: str) -> Statistics:
        return model_statistics(metrics, [find_model(manifests, model, version)])

    app.include_router(every)
    app.include_router(one)
