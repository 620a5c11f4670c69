"""The FastAPI application of the service: its description, its routes, and the facts in its metrics."""

from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from prometheus_client.core import Metric as Family

from serving.config import ServiceSettings
from serving.engine.admission.api_keys import Access
from serving.engine.feedback import live_accuracy
from serving.engine.metrics.exposition import Exposition
from serving.engine.metrics.facts import model_facts, release_facts, service_facts
from serving.engine.metrics.series import Metrics
from serving.engine.models import ServedModels
from serving.http.bodies import BodyReader
from serving.http.documentation import add_documentation
from serving.http.feedback import Label, Labels, add_feedback_routes
from serving.http.guards import Guards
from serving.http.openapi import add_schemas, describe_predictions
from serving.http.page.routes import add_documentation_redirect, add_page
from serving.http.release import add_release_routes, describe_release
from serving.http.routes import add_routes
from serving.http.v2.openapi import describe_inference
from serving.http.v2.routes import add_v2_routes
from serving.http.v2.statistics import add_statistics_routes


def add_fastapi_routes(
    app: FastAPI,
    settings: ServiceSettings,
    models: ServedModels,
    access: Access,
    metrics: Metrics,
    check_ready: Callable[[], None],
) -> None:
    """Add all routes but those of predictions. `check_ready` raises `NotReady`.

    Changes of what is served are those of `app.state.process`, which `Service.lifespan` sets.
    """
    app.title = "Distillery"
    app.version = version("distillery")
    app.description = "Classification of handwritten digits by a teacher and the students distilled from it."
    guards = Guards(access, settings.open_routes)
    guarded = access.required

    def describe() -> None:
        describe_release(app)
        describe_inference(app, models.deployment, guarded=guarded)
        describe_predictions(app, models.deployment, guarded=guarded)
        if settings.feedback:
            add_schemas(app, Label, Labels)

    def facts() -> dict[str, Any]:
        return {
            "version": app.version,
            "max_images": settings.max_images,
            "feedback": settings.feedback,
        }

    if settings.page:
        add_page(app, guards, facts)
    else:
        add_documentation_redirect(app)
    add_documentation(app, guards, describe)
    add_statistics_routes(app, models, metrics, guards.models)
    max_in_flight = settings.max_in_flight * settings.api_servers
    constant = list(service_facts(max_in_flight))

    def all_facts() -> Iterable[Family]:
        deployment = models.deployment
        aliases = {alias: deployment.find(alias) for alias in deployment.aliases}
        return (
            *constant,
            *model_facts(deployment.snapshot),
            *release_facts(deployment.release, aliases),
        )

    async def change(action: str, **arguments: Any) -> Any:
        return await app.state.process.change(action, **arguments)

    exposition = Exposition(metrics, lambda: models.deployment.slots, all_facts)
    add_routes(app, models, exposition, guards, check_ready)
    bodies = BodyReader(settings.client_timeout)
    add_release_routes(app, models, guards, change, bodies)
    if settings.feedback:
        add_feedback_routes(
            app,
            guards,
            access,
            lambda: app.state.process.feedback,
            lambda: live_accuracy(metrics, models.deployment.slots),
            expiry=settings.feedback_expiry,
            requests=settings.feedback_requests,
            bodies=bodies,
        )
    add_v2_routes(app, models, guards, check_ready, change, bodies, max_images=settings.max_images)
