"""The prediction routes in the OpenAPI document. Those below /v2 are in `serving.http.v2.openapi`.

`serving.http.prediction_routes` serves these routes in front of FastAPI, so their operations are added to FastAPI's
document here. Declaring them with `openapi_extra` would need handlers that are never called, and could not derive the
error responses from the error classes.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving.codecs import errors
from serving.codecs.schemas import (
    ErrorAnswer,
    ManyImages,
    OneImage,
    OnePicture,
    PredictAnswer,
    ReadAnswer,
)
from serving.engine.models import Deployment

_REF = "#/components/schemas/{model}"
TIMING_HEADER = {
    "description": "durations of decode, queue, inference and total, in milliseconds",
    "schema": {"type": "string"},
}
CONTENT_ENCODING = {
    "name": "Content-Encoding",
    "in": "header",
    "description": "compression of the body",
    "schema": {"type": "string", "enum": ["gzip", "deflate", "identity"]},
}
TIMEOUT = {
    "name": "X-Request-Timeout-Seconds",
    "in": "header",
    "description": "time in which the client expects the response, if that is less than the service's own limit",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}
_INCLUDE = {
    "name": "include",
    "in": "query",
    "description": "input: add the 28×28 image that the model saw to each prediction",
    "schema": {"type": "string", "enum": ["input"]},
}
KEY_ERRORS: set[type[errors.RequestError]] = {errors.Unauthorized, errors.Forbidden, errors.RateLimited}
"""Of a service that requires a key."""
_FILE = {"schema": {"type": "string", "format": "binary"}}


def describe_predictions(app: FastAPI, deployment: Deployment, *, guarded: bool) -> None:
    """Add `POST /predict`, `/read`, and both with `/{model}` and a version, to the document of `app`.

    `guarded` ones need the API key.
    """
    add_schemas(app, OneImage, OnePicture, ManyImages, PredictAnswer, ReadAnswer, ErrorAnswer)
    bodies = _bodies()
    pictures = {kind: body for kind, body in bodies.items() if body is _FILE or kind == "multipart/form-data"}
    picture = pictures | {"application/json": {"schema": ref(OnePicture)}}
    never = set() if guarded else KEY_ERRORS
    paths = {}
    for path, verb, summary, content, answer in (
        ("/predict", "predict", "Classify digits", bodies, PredictAnswer),
        ("/read", "read", "Read the number in a picture of a line of digits", picture, ReadAnswer),
    ):
        operation: dict[str, Any] = {
            "tags": ["predictions"],
            "requestBody": {
                "description": "A body is recognised by its first bytes; only forms and raw pixels need their media "
                "type.",
                "required": True,
                "content": content,
            },
            "responses": {
                "200": {
                    "description": " ".join((answer.__doc__ or "").split()),
                    "headers": {"Server-Timing": TIMING_HEADER},
                    "content": {"application/json": {"schema": ref(answer)}},
                },
                **error_responses(ErrorAnswer, lambda kind: kind.status, never=never),
            },
        }
        paths[path] = operation | {
            "operationId": verb,
            "summary": f"{summary}; default model: {deployment.default}",
            "parameters": [_INCLUDE, CONTENT_ENCODING, TIMEOUT],
        }
        paths[f"{path}/{{model}}"] = operation | {
            "operationId": f"{verb}_with_model",
            "summary": f"{summary} with the named model",
            "parameters": [path_parameter("model", deployment.names), _INCLUDE, CONTENT_ENCODING, TIMEOUT],
        }
        paths[f"{path}/{{model}}/versions/{{version}}"] = operation | {
            "operationId": f"{verb}_with_version",
            "summary": f"{summary} with a version of the named model",
            "parameters": [*version_parameters(deployment), _INCLUDE, CONTENT_ENCODING, TIMEOUT],
        }
    add_posts(app, paths, guarded=guarded)


def version_parameters(deployment: Deployment) -> list[dict[str, Any]]:
    """Return the parameters of a path with a model and a version."""
    versions = {entry.manifest.version for entry in deployment.snapshot}
    return [
        path_parameter("model", list(deployment.snapshot.versions)),
        path_parameter("version", sorted(versions, key=int)),
    ]


def path_parameter(name: str, values: Sequence[str]) -> dict[str, Any]:
    """Return a parameter of a path that has one of these values."""
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "enum": list(values)}}


def add_schemas(app: FastAPI, *models: type[BaseModel]) -> None:
    """Add schemas that FastAPI does not know, and remove those of its validation, which rejects nothing here."""
    document = app.openapi()
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    known = document.setdefault("components", {}).setdefault("schemas", {})
    known.update(schemas["$defs"])
    for unused in ("HTTPValidationError", "ValidationError"):
        known.pop(unused, None)
    for operations in document["paths"].values():
        for operation in operations.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]


def add_posts(app: FastAPI, paths: Mapping[str, dict[str, Any]], *, guarded: bool) -> None:
    """Add POST operations at the head of the document; `guarded` ones need the API key."""
    document = app.openapi()
    security: dict[str, Any] = {"security": [{"APIKeyHeader": []}]} if guarded else {}
    document["paths"] = {
        path: {"post": operation | security} for path, operation in paths.items()
    } | document["paths"]


def _bodies() -> dict[str, Any]:
    image = [[0] * 28 for _ in range(28)]
    return {
        "application/json": {
            "schema": {"anyOf": [ref(OneImage), ref(ManyImages)]},
            "example": {"image": image},
        },
        **dict.fromkeys(("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"), _FILE),
        "application/octet-stream": {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": "a picture, or the pixels of N images: N · 784 bytes, 0–255",
            }
        },
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "description": "one or several pictures, under any name; text fields are ignored",
                "minProperties": 1,
                "additionalProperties": {"type": "string", "format": "binary"},
            }
        },
    }


def error_responses(
    body: type[BaseModel],
    status: Callable[[type[errors.RequestError]], int],
    *,
    never: Set[type[errors.RequestError]],
) -> dict[str, Any]:
    """Return the error responses of a prediction by status, derived from the error classes except `never`."""
    kinds: dict[int, list[type[errors.RequestError]]] = {}
    for kind in errors.prediction_errors():
        if kind not in never:
            kinds.setdefault(status(kind), []).append(kind)
    return {
        str(number): {
            "description": " ".join(f"`{kind.code}`: {kind.__doc__}" for kind in kinds[number]),
            "content": {"application/json": {"schema": ref(body)}},
        }
        for number in sorted(kinds)
    }


def ref(model: type[BaseModel]) -> dict[str, str]:
    """Return a reference to a schema that `add_schemas` added."""
    return {"$ref": _REF.format(model=model.__name__)}
