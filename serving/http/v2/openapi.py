"""The inference routes of the Open Inference Protocol, for the OpenAPI document."""

from typing import Any

from fastapi import FastAPI

from serving.codecs.errors import (
    InvalidPicture,
    RequestError,
    TooManyPixels,
    UnsupportedMediaType,
)
from serving.codecs.open_inference.rest import error_status
from serving.codecs.open_inference.schemas import InferError, InferRequest, InferResponse
from serving.engine.models import Deployment
from serving.http.openapi import (
    CONTENT_ENCODING,
    KEY_ERRORS,
    TIMEOUT,
    TIMING_HEADER,
    add_posts,
    add_schemas,
    error_responses,
    path_parameter,
    ref,
    version_parameters,
)

_JSON_LENGTH = {"type": "integer", "minimum": 0}
_PICTURE_ERRORS: set[type[RequestError]] = {InvalidPicture, TooManyPixels, UnsupportedMediaType}
_BINARY = {"type": "string", "format": "binary"}


def describe_inference(app: FastAPI, deployment: Deployment, *, guarded: bool) -> None:
    """Add `POST /v2/models/{model}[/versions/{version}]/infer` to the document of `app`."""
    add_schemas(app, InferRequest, InferResponse, InferError)
    model = path_parameter("model", deployment.names)
    never = _PICTURE_ERRORS if guarded else _PICTURE_ERRORS | KEY_ERRORS
    operation: dict[str, Any] = {
        "tags": ["Open Inference Protocol"],
        "summary": "Classify digits (inference of the Open Inference Protocol)",
        "requestBody": {"required": True, "content": _bodies()},
        "responses": {"200": _answer(), **error_responses(InferError, error_status, never=never)},
    }
    paths = {
        "/v2/models/{model}/infer": operation | {"operationId": "infer", "parameters": [model, *_HEADERS]},
        "/v2/models/{model}/versions/{version}/infer": operation
        | {"operationId": "infer_with_version", "parameters": [*version_parameters(deployment), *_HEADERS]},
    }
    add_posts(app, paths, guarded=guarded)


_HEADERS = [
    {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "schema": _JSON_LENGTH,
        "description": "bytes of JSON before the binary tensor; 0: the body consists of pixels only",
    },
    CONTENT_ENCODING,
    TIMEOUT,
]


def _bodies() -> dict[str, Any]:
    tensor = {"name": "image", "shape": [1, 28, 28], "datatype": "UINT8", "data": [0] * 784}
    return {
        "application/json": {"schema": ref(InferRequest), "example": {"inputs": [tensor]}},
        "application/octet-stream": {"schema": _BINARY},
    }


def _answer() -> dict[str, Any]:
    return {
        "description": "the outputs; application/octet-stream if any was requested as binary",
        "headers": {
            "Server-Timing": TIMING_HEADER,
            "Inference-Header-Content-Length": {
                "description": "bytes of JSON before the binary tensors",
                "schema": _JSON_LENGTH,
            },
        },
        "content": {
            "application/json": {"schema": ref(InferResponse)},
            "application/octet-stream": {"schema": _BINARY},
        },
    }
