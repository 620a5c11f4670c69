"""Every way to send images, compressed or not, decodes to the same pixels."""

import base64
import gzip
import io
import json
import zlib
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from serving.codecs.base import BodyLimits, Codec
from serving.codecs.open_inference.grpc import GrpcCodec
from serving.codecs.open_inference.open_inference_pb2 import ModelInferRequest
from serving.codecs.open_inference.rest import OpenInferenceCodec
from serving.codecs.predict import PredictCodec
from tests.support.training.samples import sample_test

PREDICT, V2, GRPC = PredictCodec(), OpenInferenceCodec(), GrpcCodec()
LIMITS = BodyLimits()
DIGITS = sample_test().images.numpy()
LENGTH = b"inference-header-content-length"
JSON, RAW = {b"content-type": b"application/json"}, {b"content-type": b"application/octet-stream"}
COMPRESSIONS = {
    b"": bytes,
    b"identity": bytes,
    b"gzip": gzip.compress,
    b"x-gzip": gzip.compress,
    b"deflate": zlib.compress,
}

PIXELS = arrays(np.uint8, st.tuples(st.integers(1, 3), st.just(28), st.just(28)))
SAMPLES = st.lists(st.integers(0, len(DIGITS) - 1), min_size=1, max_size=3).map(lambda chosen: DIGITS[chosen])
ALWAYS_ALIKE = settings(derandomize=True, database=None, deadline=None, max_examples=20)

Message = tuple[Codec, dict[bytes, bytes], bytes]


def numbers(images: Any) -> list[Message]:
    """Return requests with these pixels as numbers or bytes."""
    count, nested, flat = len(images), images.tolist(), images.reshape(len(images), -1).tolist()
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(images.shape)}
    document = {"inputs": [tensor | {"parameters": {"binary_data_size": images.size}}]}
    text = json.dumps(document).encode()
    grpc = ModelInferRequest(model_name="student", inputs=[tensor])
    as_bytes, as_numbers = ModelInferRequest(), ModelInferRequest()
    for message in (as_bytes, as_numbers):
        message.CopyFrom(grpc)
    as_bytes.raw_input_contents.append(images.tobytes())
    as_numbers.inputs[0].contents.uint_contents.extend(images.ravel().tolist())
    bodies = [
        {"images": nested},
        {"images": flat},
        {"images": [one if index % 2 else flat[index] for index, one in enumerate(nested)]},
        *([{"image": nested[0]}, {"image": flat[0]}] if count == 1 else []),
    ]
    return [
        *((PREDICT, JSON, json.dumps(body).encode()) for body in bodies),
        (
            PREDICT,
            {},
            b"\xef\xbb\xbf" + json.dumps(bodies[0], indent=1).replace("images", "\\u0069mages").encode(),
        ),
        (PREDICT, RAW, images.tobytes()),
        (V2, JSON, json.dumps({"inputs": [tensor | {"data": images.ravel().tolist()}]}).encode()),
        (V2, {}, json.dumps({"inputs": [tensor | {"data": nested}]}, indent=2).encode()),
        (V2, {LENGTH: b"%d" % len(text)}, text + images.tobytes()),
        (V2, {LENGTH: b"0"}, images.tobytes()),
        (GRPC, {}, as_bytes.SerializeToString()),
        (GRPC, {}, as_numbers.SerializeToString()),
    ]


def pictures(digits: Any) -> list[Message]:
    """Return requests with these digits of MNIST as pictures, which are used unchanged."""
    found: list[Message] = []
    for kind, options in (("PNG", {}), ("GIF", {}), ("BMP", {}), ("WEBP", {"lossless": True})):
        files = []
        for digit in digits:
            buffer = io.BytesIO()
            Image.fromarray(digit).save(buffer, kind, **options)
            files.append(buffer.getvalue())
        parts = b"".join(
            b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n%b\r\n' % file
            for file in files
        )
        texts = [base64.b64encode(file).decode() for file in files]
        found += [
            (PREDICT, {b"content-type": b"multipart/form-data; boundary=x"}, parts + b"--x--\r\n"),
            (PREDICT, JSON, json.dumps({"images": texts}).encode()),
            *([(PREDICT, {}, files[0]), (PREDICT, {}, texts[0].encode())] if len(files) == 1 else []),
        ]
    return found


def check(messages: list[Message], images: Any, encoding: bytes) -> None:
    for codec, headers, body in messages:
        compressed = encoding if codec is not GRPC else b""  # gRPC compresses messages itself
        head = codec.check(headers | {b"content-encoding": compressed})
        query = codec.decode(head, COMPRESSIONS[compressed](body), LIMITS)
        assert np.array_equal(query.images, images), (codec.name, headers, body[:80])


@ALWAYS_ALIKE
@given(images=PIXELS, encoding=st.sampled_from(list(COMPRESSIONS)))
def test_pixels_as_numbers_or_bytes_are_decoded_unchanged(images: Any, encoding: bytes) -> None:
    check(numbers(images), images, encoding)


@ALWAYS_ALIKE
@given(digits=SAMPLES, encoding=st.sampled_from(list(COMPRESSIONS)))
def test_digits_as_pictures_are_decoded_unchanged(digits: Any, encoding: bytes) -> None:
    check(pictures(digits), digits, encoding)
