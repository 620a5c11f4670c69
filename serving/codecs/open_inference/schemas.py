"""The documents of the Open Inference Protocol, for /docs and /openapi.json.

As with `serving.codecs.schemas`, inference is read and written without these models; the tests hold the two together.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from serving.codecs.schemas import Flat, Pixel, Rows
from serving.model.repository import TensorSpec

Scalar = bool | int | float | str


class InferInput(BaseModel):
    """The images: as `data`, or as bytes after the JSON, so many as `parameters.binary_data_size` says."""

    name: Literal["image"]
    shape: Annotated[
        list[int], Field(min_length=3, max_length=3, description="[N,28,28]", examples=[[1, 28, 28]])
    ]
    datatype: Literal["UINT8"]
    data: Annotated[
        list[Pixel] | list[Rows | Flat] | None, Field(description="N·784 ink values, flat or nested")
    ] = None
    parameters: Annotated[dict[str, Scalar], Field(description="binary_data_size")] = {}


class InferOutput(BaseModel):
    """One output asked for."""

    name: Literal["logits", "probabilities"]
    parameters: Annotated[
        dict[str, Scalar],
        Field(
            description="binary_data: as bytes after the JSON; "
            'classification: so many of the likeliest digits, as "score:digit"'
        ),
    ] = {}


class InferRequest(BaseModel):
    """What the model is to classify, and which outputs are wanted; by default all, as JSON."""

    inputs: Annotated[list[InferInput], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[InferOutput], Field(max_length=2)] = []
    id: Annotated[str | None, Field(description="comes back with the answer")] = None
    parameters: Annotated[
        dict[str, Scalar], Field(description="binary_data_output: all outputs as bytes")
    ] = {}


class InferTensor(BaseModel):
    """One output: its values as `data`, row by row, or as bytes after the JSON."""

    name: Literal["logits", "probabilities"]
    datatype: Literal["FP32", "BYTES"]
    shape: Annotated[list[int], Field(min_length=2, max_length=2, description="[N,10]")]
    data: list[float] | list[str] | None = None
    parameters: Annotated[dict[str, int], Field(description="binary_data_size")] = {}


class InferResponse(BaseModel):
    """The outputs in the order asked for."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferTensor]


class InferError(BaseModel):
    """The body of every answer below /v2 that is not a success."""

    error: Annotated[str, Field(examples=["inputs[0].shape is [1,28,27]; expected [N,28,28] with N images"])]


class ServerMetadata(BaseModel):
    """Who answers, and which extensions of the protocol it speaks."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    """Whether the service answers at all."""

    live: bool


class ServerReady(BaseModel):
    """Whether the service infers."""

    ready: bool


class ModelReady(BaseModel):
    """Whether a model infers."""

    name: str
    ready: bool


class ModelMetadata(BaseModel):
    """What a model reads and gives; -1 is the number of images."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


class RepositoryEntry(BaseModel):
    """One model of the repository."""

    name: str
    version: str
    state: Literal["READY"]
    reason: str = ""
