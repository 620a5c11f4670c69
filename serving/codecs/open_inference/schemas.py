"""Request and response documents of the Open Inference Protocol, for /docs and /openapi.json.

As with `serving.codecs.schemas`, inference is decoded and encoded without these models; tests check that both agree.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from serving.codecs.schemas import Flat, Pixel, Rows
from serving.model.repository import TensorSpec

Scalar = bool | int | float | str


class InferInput(BaseModel):
    """The images: as `data`, or as `parameters.binary_data_size` bytes after the JSON."""

    name: Literal["image"]
    shape: Annotated[
        list[int], Field(min_length=3, max_length=3, description="[N,28,28]", examples=[[1, 28, 28]])
    ]
    datatype: Literal["UINT8"]
    data: Annotated[
        list[Pixel] | list[Rows | Flat] | SkipJsonSchema[None],
        # A factory is not in the document, which has no null.
        Field(description="N·784 ink values, flat or nested", default_factory=lambda: None),
    ]
    parameters: Annotated[dict[str, Scalar], Field(description="binary_data_size: bytes after the JSON")] = {}


class InferOutput(BaseModel):
    """A requested output."""

    name: Literal["logits", "probabilities", "confidence", "accepted"]
    parameters: Annotated[
        dict[str, Scalar],
        Field(
            description="binary_data: as bytes after the JSON; "
            'classification: the n most probable digits, as "score:digit"'
        ),
    ] = {}


class InferRequest(BaseModel):
    """The images to classify and the requested outputs; by default all, as JSON."""

    inputs: Annotated[list[InferInput], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[InferOutput], Field(max_length=4)] = []
    id: Annotated[str | None, Field(description="returned in the response")] = None
    parameters: Annotated[
        dict[str, Scalar], Field(description="binary_data_output: all outputs as bytes")
    ] = {}


class InferTensor(BaseModel):
    """One output: its values as `data`, row by row, or as bytes after the JSON."""

    name: Literal["logits", "probabilities", "confidence", "accepted"]
    datatype: Literal["FP32", "BOOL", "BYTES"]
    shape: Annotated[list[int], Field(min_length=2, max_length=2, description="[N,10], or [N,1]")]
    data: list[float] | list[bool] | list[str] | None = None
    parameters: Annotated[
        dict[str, int],
        Field(
            description="binary_data_size: bytes after the JSON; "
            "accepted: number of images whose prediction is accepted, absent for a model without acceptance rule"
        ),
    ] = {}


class InferResponse(BaseModel):
    """The outputs, in the requested order."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferTensor]


class InferError(BaseModel):
    """The body of every error response below /v2."""

    error: Annotated[str, Field(examples=["inputs[0].shape is [1,28,27]; expected [N,28,28] with N images"])]


class ServerMetadata(BaseModel):
    """Name and version of the server, and its extensions of the protocol."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    """Liveness of the server."""

    live: bool


class ServerReady(BaseModel):
    """Readiness of the server for inference."""

    ready: bool


class ModelReady(BaseModel):
    """Readiness of a model for inference."""

    name: str
    ready: bool


class ModelMetadata(BaseModel):
    """Inputs and outputs of a model; -1 is the number of images."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


class RepositoryEntry(BaseModel):
    """One version of a model of the repository."""

    name: str
    version: Annotated[str, Field(description="empty: the model as a whole")]
    state: Literal["READY", "UNAVAILABLE"]
    reason: Annotated[str, Field(description="why it is not served")] = ""
