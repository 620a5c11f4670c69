"""The codec of `POST /read` and `POST /read/{model}`: a picture with a line of digits in, the number out."""

from collections.abc import Sequence

import numpy as np

from serving.codecs.base import BodyLimits, Head, Prediction, Query, Reply, Timing
from serving.codecs.bodies import body
from serving.codecs.bodies.decompress import decompress
from serving.codecs.errors import InvalidPicture, InvalidType, TooManyImages
from serving.codecs.pictures.decode import File, decode_pixels, no_digit
from serving.codecs.pictures.digit_line import Candidate, find_line, read
from serving.codecs.predict import PredictCodec, digits_of, respond
from serving.model.repository import Manifest

PREFIX = "/read"
WORKING_SIDE = 640
"""A line of digits needs more pixels than one digit."""
MAX_CANDIDATES = 512
"""Digits that touch each other have about ten candidates each."""


class ReadCodec(PredictCodec):
    """The images of a query are all candidates of the line; `select` keeps those that form the number."""

    route = PREFIX

    def decodes_inline(self, head: Head, content: bytes) -> bool:  # noqa: ARG002
        return False

    def decode(self, head: Head, content: bytes, limits: BodyLimits) -> Query:
        content = decompress(head.encoding, content, limits.max_body_bytes)
        line = body.decode(head, content, limits, candidates_in)
        if not isinstance(line, list):
            raise InvalidType("found the pixels of 28×28 images; expected a picture with a line of digits")
        images = np.stack([candidate.image for candidate in line])
        return Query(images, includes_input=head.includes_input, line=line)

    def select(self, query: Query, prediction: Prediction) -> tuple[Query, Prediction]:
        chosen = read(query.line, prediction.logits, prediction.confidence)
        selected = query._replace(images=query.images[chosen], line=[query.line[index] for index in chosen])
        return selected, prediction.selection(chosen)

    def encode(self, model: Manifest, query: Query, prediction: Prediction, timing: Timing) -> Reply:
        digits = digits_of(model, query, prediction)
        for digit, candidate in zip(digits, query.line, strict=True):
            rows, columns = candidate.box
            digit["box"] = {
                "left": columns.start,
                "top": rows.start,
                "width": columns.stop - columns.start,
                "height": rows.stop - rows.start,
            }
        return respond(
            model, {"number": "".join(str(one["digit"]) for one in digits), "digits": digits}, timing
        )


def candidates_in(files: Sequence[File], max_pixels: int) -> list[Candidate]:
    """Return the candidates in a picture, their boxes in its own pixels. Raises `RequestError`."""
    if len(files) != 1:
        raise TooManyImages(f"found {len(files)} pictures; expected one, with a line of digits")
    ((name, levels, scale),) = decode_pixels(files, max_pixels, WORKING_SIDE)
    candidates = find_line(levels, MAX_CANDIDATES)
    if candidates is None:
        raise InvalidPicture(f"{name} has too many marks for a line of digits; crop it to the line")
    if not candidates:
        raise no_digit(name)
    return [one._replace(box=(_scaled(one.box[0], scale), _scaled(one.box[1], scale))) for one in candidates]


def _scaled(side: slice, scale: float) -> slice:
    return slice(round(side.start * scale), round(side.stop * scale))
