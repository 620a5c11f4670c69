"""The routes of the release: its state for everyone who may see models, changes for administrators."""

from typing import Any

from fastapi import FastAPI, Request

from serving.codecs.errors import InvalidInput
from serving.codecs.schemas import ErrorAnswer
from serving.engine.models import Change, ServedModels
from serving.http.bodies import BodyReader
from serving.http.guards import KEY_STATUSES, Guards
from serving.http.openapi import add_schemas, ref
from serving.model.release import Candidate

PATH = "/release"

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 404, 408, 413, 422, *KEY_STATUSES, 503)
}


def add_release_routes(
    app: FastAPI, models: ServedModels, guards: Guards, change: Change, bodies: BodyReader
) -> None:
    """Add the routes to `app`; `change` has the parent process change what is served."""
    seen: dict[int | str, dict[str, Any]] = (
        {status: {"model": ErrorAnswer} for status in KEY_STATUSES} if guards.models else {}
    )

    @app.get(
        PATH,
        tags=["release"],
        summary="Stable version, candidate, evidence and decisions",
        responses=seen,
        **guards.models,
    )
    async def release() -> dict[str, Any]:
        try:
            found: dict[str, Any] = await change("status")
        except InvalidInput:  # an application without a parent process, which cannot have a candidate
            return models.deployment.release.model_dump(mode="json")
        return found

    schema = {"requestBody": {"required": True, "content": {"application/json": {"schema": ref(Candidate)}}}}

    @app.put(
        PATH,
        tags=["release"],
        summary="Start a candidate, or change its shares",
        responses=_ERRORS,
        openapi_extra=schema,
        **guards.admin,
    )
    async def start(request: Request) -> dict[str, Any]:
        document = await bodies.read_json(request)
        found: dict[str, Any] = await change("start", document=document)
        return found

    def add_decision(action: str, summary: str) -> None:
        @app.post(
            f"{PATH}/{action}",
            name=action,
            tags=["release"],
            summary=summary,
            responses=_ERRORS,
            **guards.admin,
        )
        async def decide() -> dict[str, Any]:
            found: dict[str, Any] = await change(action)
            return found

    add_decision("promote", "Make the candidate the stable version")
    add_decision("rollback", "End the candidate; without one, return to the previous stable version")


def describe_release(app: FastAPI) -> None:
    """Add the schema of a candidate to the document of `app`."""
    add_schemas(app, Candidate)
