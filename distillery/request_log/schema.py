"""The columns of a request log."""

from typing import Literal

from distillery.request_log.arrow import pa

Kind = Literal["requests", "feedback"]
Reason = Literal["sample", "unaccepted", "disagreement"]
SIDE = 28
PIXELS = SIDE * SIDE
DIGITS = 10

REQUESTS = pa.schema(
    [
        # When the prediction was made.
        pa.field("time", pa.timestamp("us", "UTC"), nullable=False),
        # Of the header X-Request-ID; with `index`, it names an image.
        pa.field("id", pa.string(), nullable=False),
        pa.field("index", pa.int16(), nullable=False),
        # Number of images in the request, of which not all need be in the log.
        pa.field("images", pa.int16(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        # Of the codec: rest, v2 or grpc.
        pa.field("protocol", pa.string(), nullable=False),
        # Name of the API key, where clients have keys of their own.
        pa.field("client", pa.string()),
        # uint8 [28, 28], ink as the model saw it.
        pa.field("image", pa.binary(PIXELS), nullable=False),
        pa.field("digit", pa.int8(), nullable=False),
        pa.field("probabilities", pa.list_(pa.float32(), DIGITS), nullable=False),
        # Null for a model without acceptance rule.
        pa.field("confidence", pa.float32()),
        pa.field("accepted", pa.bool_()),
        # Of the teacher, where it was compared.
        pa.field("teacher_digit", pa.int8()),
        pa.field("reason", pa.string(), nullable=False),
        # Probability with which an image is logged for this reason; 1: always.
        pa.field("rate", pa.float32(), nullable=False),
    ]
)
FEEDBACK = pa.schema(
    [
        pa.field("time", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("index", pa.int16(), nullable=False),
        # The true digit.
        pa.field("label", pa.int8(), nullable=False),
    ]
)
SCHEMAS = {"requests": REQUESTS, "feedback": FEEDBACK}
REPEATED = ["model", "version", "protocol", "client", "reason"]
"""Columns with few distinct values."""
