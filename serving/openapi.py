"""The OpenAPI document: FastAPI's, with the two prediction routes that are answered in front of it."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving import errors
from serving.schemas import ErrorAnswer, ManyImages, OneImage, PredictAnswer

_REF = "#/components/schemas/{model}"
_TIMING_HEADER = {
    "description": "decode, queue, inference and total, in milliseconds",
    "schema": {"type": "string"},
}
_PICTURE = {"schema": {"type": "string", "format": "binary"}}


def describe_predictions(app: FastAPI, models: Mapping[str, Any], default: str, *, guarded: bool) -> None:
    """Write `POST /predict` and `POST /predict/{model}` into the document `app` serves."""
    document = app.openapi()
    _, schemas = models_json_schema(
        [(model, "validation") for model in (OneImage, ManyImages, PredictAnswer, ErrorAnswer)],
        ref_template=_REF,
    )
    for operations in document["paths"].values():
        operations["get"]["responses"].pop("422", None)  # FastAPI's own validation has nothing to refuse here
    known = document.setdefault("components", {}).setdefault("schemas", {})
    known.update(schemas["$defs"])
    for unused in ("HTTPValidationError", "ValidationError"):
        known.pop(unused, None)
    operation: dict[str, Any] = {
        "tags": ["predictions"],
        "requestBody": {"required": True, "content": _bodies()},
        "responses": {
            "200": {
                "description": "one prediction for each image",
                "headers": {"Server-Timing": _TIMING_HEADER},
                "content": {"application/json": {"schema": _ref(PredictAnswer)}},
            },
            **_refusals(guarded=guarded),
        },
    }
    if guarded:
        operation["security"] = [{"APIKeyHeader": []}]
    document["paths"] = {
        "/predict": {
            "post": operation
            | {"operationId": "predict", "summary": f"Classify digits with the default model, {default}"}
        },
        "/predict/{model}": {
            "post": operation
            | {
                "operationId": "predict_with_model",
                "summary": "Classify digits with the named model",
                "parameters": [
                    {
                        "name": "model",
                        "in": "path",
                        "required": True,
                        "schema": {"type": "string", "enum": list(models)},
                    }
                ],
            }
        },
    } | document["paths"]


def _bodies() -> dict[str, Any]:
    image = [[0] * 28 for _ in range(28)]
    return {
        "application/json": {
            "schema": {"anyOf": [_ref(OneImage), _ref(ManyImages)]},
            "example": {"image": image},
        },
        "image/png": _PICTURE,
        "image/jpeg": _PICTURE,
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "description": "one or several PNG or JPEG files, under any name",
                "minProperties": 1,
                "additionalProperties": {"type": "string", "format": "binary"},
            }
        },
    }


def _refusals(*, guarded: bool) -> dict[str, Any]:
    """Every error a prediction may end in, by status, read from the error classes themselves."""
    kinds: dict[int, list[type[errors.RequestError]]] = {}
    for kind in _all_kinds(errors.RequestError):
        if guarded or kind is not errors.Unauthorized:
            kinds.setdefault(kind.status, []).append(kind)
    return {
        str(status): {
            "description": " ".join(f"`{kind.code}`: {kind.__doc__}" for kind in kinds[status]),
            "content": {"application/json": {"schema": _ref(ErrorAnswer)}},
        }
        for status in sorted(kinds)
    }


def _all_kinds(base: type[errors.RequestError]) -> list[type[errors.RequestError]]:
    return [kind for child in base.__subclasses__() for kind in (child, *_all_kinds(child))]


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}
