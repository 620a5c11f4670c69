"""The documents of the HTTP interface, for /docs and /openapi.json.

Predictions are read and written without these models, which would cost more than a student; the tests hold
the two together.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.model.repository import Manifest

Pixel = Annotated[int, Field(ge=0, le=255)]
Row = Annotated[list[Pixel], Field(min_length=28, max_length=28)]
Rows = Annotated[list[Row], Field(min_length=28, max_length=28, description="28 rows of 28 ink values")]
Flat = Annotated[list[Pixel], Field(min_length=784, max_length=784, description="784 ink values, row by row")]
Picture = Annotated[str, Field(description="base64 of a PNG or JPEG, with or without a data: prefix")]
Image = Rows | Flat | Picture


class OneImage(BaseModel):
    """One image: ink values 0–255 with light ink on black as MNIST has it, or a picture of any kind."""

    model_config = ConfigDict(extra="forbid")
    image: Image


class ManyImages(BaseModel):
    """Several images, all arrays or all pictures."""

    model_config = ConfigDict(extra="forbid")
    images: Annotated[list[Rows | Flat] | list[Picture], Field(min_length=1)]


class DigitPrediction(BaseModel):
    """What the model makes of one image."""

    digit: Annotated[int, Field(ge=0, le=9)]
    probability: Annotated[float, Field(ge=0, le=1, description="of this digit")]
    probabilities: Annotated[
        list[float], Field(min_length=10, max_length=10, description="of the digits 0 to 9")
    ]


class PredictionTiming(BaseModel):
    """Where the time went inside the service, in milliseconds."""

    decode_ms: Annotated[float, Field(description="from the body to the images")]
    queue_ms: Annotated[float, Field(description="waiting for the run")]
    inference_ms: Annotated[float, Field(description="the run of the whole batch this request was part of")]
    total_ms: Annotated[float, Field(description="from the body received to the answer being written")]


class PredictAnswer(BaseModel):
    """One prediction for each image, in the order of the request."""

    model: str
    version: str
    predictions: list[DigitPrediction]
    timing: PredictionTiming


class ErrorDetail(BaseModel):
    """What is wrong, for programs and for people."""

    code: Annotated[str, Field(examples=["invalid_range"])]
    message: Annotated[str, Field(examples=["image[3][17] is 256; expected an integer 0–255"])]


class ErrorAnswer(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class Health(BaseModel):
    """How the service is."""

    status: Literal["live", "ready"]


class ModelList(BaseModel):
    """Every model served."""

    default: Annotated[str, Field(description="the model that answers POST /predict")]
    models: list[Manifest]
