"""Request and response documents of the HTTP API, for /docs and /openapi.json.

Predictions are decoded and encoded without these models, which would take longer than a student's inference; tests
check that both agree.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.model.repository import Manifest
from serving.model.tensors import CLASSES, PIXELS, SIDE

Pixel = Annotated[int, Field(ge=0, le=255)]
Row = Annotated[list[Pixel], Field(min_length=SIDE, max_length=SIDE)]
Rows = Annotated[list[Row], Field(min_length=SIDE, max_length=SIDE, description="28 rows of 28 ink values")]
Flat = Annotated[
    list[Pixel], Field(min_length=PIXELS, max_length=PIXELS, description="784 ink values, row by row")
]
Picture = Annotated[
    str, Field(description="base64 of a PNG, JPEG, WebP, GIF or BMP, with or without a data: prefix")
]
Image = Rows | Flat | Picture


class OneImage(BaseModel):
    """One image: ink values 0–255 as in MNIST (0 is background), or a picture of any size and colours."""

    model_config = ConfigDict(extra="forbid")
    image: Image


class OnePicture(BaseModel):
    """One picture with a line of digits."""

    model_config = ConfigDict(extra="forbid")
    image: Picture


class ManyImages(BaseModel):
    """Several images: either all arrays or all pictures."""

    model_config = ConfigDict(extra="forbid")
    images: Annotated[list[Rows | Flat] | list[Picture], Field(min_length=1)]


class DigitPrediction(BaseModel):
    """The prediction for one image."""

    digit: Annotated[int, Field(ge=0, le=9)]
    probability: Annotated[float, Field(ge=0, le=1, description="probability of `digit`")]
    probabilities: Annotated[
        list[float],
        Field(min_length=CLASSES, max_length=CLASSES, description="probabilities of the digits 0 to 9"),
    ]
    confidence: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="calibrated probability that the image shows a digit, and that it is `digit`; "
            "null: the model was exported before it had an acceptance rule",
        ),
    ]
    accepted: Annotated[
        bool | None,
        Field(
            description="whether the confidence reaches the model's threshold: `acceptance` of its manifest"
        ),
    ]
    model: Annotated[
        str | None,
        Field(default=None, description="model of the cascade that predicted; of cascades only"),
    ]
    input: Annotated[
        Rows | None,
        Field(default=None, description="the image that the model saw; with `?include=input` only"),
    ]


class PredictionTiming(BaseModel):
    """Milliseconds spent in the service, by stage."""

    decode_ms: Annotated[float, Field(description="decoding the body to images")]
    queue_ms: Annotated[float, Field(description="waiting for the start of the run")]
    inference_ms: Annotated[float, Field(description="the run of the batch that includes this request")]
    total_ms: Annotated[float, Field(description="from the body received to the response being encoded")]


class PredictAnswer(BaseModel):
    """One prediction for each image, in the order of the request."""

    model: str
    version: str
    predictions: list[DigitPrediction]
    timing: PredictionTiming


class DigitBox(BaseModel):
    """The bounding box of a digit in the upright picture, in pixels of the file."""

    left: int
    top: int
    width: int
    height: int


class ReadDigit(DigitPrediction):
    """The prediction for one digit of a line."""

    box: DigitBox


class ReadAnswer(BaseModel):
    """The number in the picture, and its digits from left to right."""

    model: str
    version: str
    number: Annotated[str, Field(pattern="^[0-9]+$", examples=["1984"])]
    digits: list[ReadDigit]
    timing: PredictionTiming


class ErrorDetail(BaseModel):
    """An error, for programs (`code`) and for people (`message`)."""

    code: Annotated[str, Field(examples=["invalid_range"])]
    message: Annotated[str, Field(examples=["image[3][17] is 256; expected an integer 0–255"])]


class ErrorAnswer(BaseModel):
    """The body of every error response."""

    error: ErrorDetail


class Health(BaseModel):
    """The health of the service."""

    status: Literal["live", "ready"]


class ModelList(BaseModel):
    """All models of the service."""

    default: Annotated[str, Field(description="the model of POST /predict")]
    models: list[Manifest]
