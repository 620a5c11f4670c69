"""Fuzz targets of request bodies: JSON, pictures, forms, compressed and raw bodies, and the Open Inference Protocol.

An input is the headers of a request, one a line, an empty line and the body; the header `?` is the URL's query. The
codec checks the headers, decodes the body, and encodes the response to what it decoded.
"""

import base64
import json
import random
import zlib
from collections.abc import Collection
from functools import partial

import numpy as np

from serving.codecs.base import BodyLimits, Codec, Head, Prediction, Query, Reply, Timing
from serving.codecs.errors import RequestError
from serving.codecs.open_inference.rest import OpenInferenceCodec
from serving.codecs.predict import PredictCodec
from serving.codecs.read import MAX_CANDIDATES, ReadCodec
from serving.model.repository import INPUTS, OUTPUTS, Manifest
from serving.model.tensors import Images
from tests.fuzz.pictures import mutate_picture, pictures, small_picture
from tests.fuzz.target import Mutation, Target

LIMITS = BodyLimits(max_images=8, max_pixels=1_000_000, max_body_bytes=65_536)
MANIFEST = Manifest.model_construct(name="student", version="1", inputs=INPUTS, outputs=OUTPUTS)
TIMING = Timing(0.1, 0.2, 0.3, 0.6)
PREDICT, READ, V2 = PredictCodec(), ReadCodec(), OpenInferenceCodec()
STATUSES = {400, 413, 415, 422}
"""Of an error of the body, in the documentation of /predict and /read."""
V2_STATUSES = {400, 413, 415}

_LONGEST_MESSAGE = 2000
_JSON = b"Content-Type: application/json"
_RAW = b"Content-Type: application/octet-stream"
_FORM = b"Content-Type: multipart/form-data; boundary=x"
_WINDOW_BITS = {b"gzip": 31, b"deflate": 15}


def message(*headers: bytes, body: bytes) -> bytes:
    """Return the input of these headers and this body."""
    return b"\n".join(headers) + b"\n\n" + body


def split(data: bytes) -> tuple[dict[bytes, bytes], bytes, bytes]:
    """Return headers, query and body of an input."""
    lines, _, body = data.partition(b"\n\n")
    headers = {}
    for line in lines.split(b"\n"):
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip()
    return headers, headers.pop(b"?", b""), body


def decode(codec: Codec, statuses: Collection[int], data: bytes) -> None:
    """Decode an input and encode its response; fail unless it is valid or rejected with one of `statuses`."""
    headers, url_query, body = split(data)
    try:
        head = codec.check(headers, url_query)
        codec.decodes_inline(head, body)
        query = codec.decode(head, body, LIMITS)
        check_images(query)
        respond(codec, query)
    except RequestError as error:
        check_error(codec.reject(error), statuses)
    else:
        if head.encoding and body:
            check_compression(codec, head, body, query)


def check_images(query: Query) -> None:
    """Fail unless the images of a query have the type and shape that models take."""
    assert query.images.dtype == np.uint8
    assert query.images.shape[1:] == (28, 28)
    assert 1 <= len(query.images) <= (MAX_CANDIDATES if query.line else LIMITS.max_images)


def respond(codec: Codec, query: Query) -> None:
    """Encode the response to a query, with a prediction made from its pixels. Raises `RequestError`."""
    selected, prediction = codec.select(query, predict(query.images))
    reply = codec.encode(MANIFEST, selected, prediction, TIMING)
    assert reply.status == 200
    headers = dict(reply.headers)
    length = int(headers.get(b"inference-header-content-length", len(reply.content)))
    document = json.loads(reply.content[:length])
    if isinstance(codec, OpenInferenceCodec):
        sizes = [one.get("parameters", {}).get("binary_data_size", 0) for one in document["outputs"]]
        assert sum(sizes) == len(reply.content) - length
    elif isinstance(codec, ReadCodec):
        assert len(document["number"]) == len(document["digits"])
    else:
        assert len(document["predictions"]) == len(query.images)


def predict(images: Images) -> Prediction:
    """Return results that differ from image to image."""
    logits = images.reshape(len(images), -1)[:, :10].astype(np.float32) / 16
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    digits = logits.argmax(axis=1).tolist()
    confidence = probabilities.max(axis=1).tolist()
    accepted = [one > 0.5 for one in confidence]
    return Prediction(digits, logits, probabilities, 0.0, 0.0, confidence, accepted)


def check_error(reply: Reply, statuses: Collection[int]) -> None:
    """Fail unless a reply is an error as documented."""
    assert reply.status in statuses, reply
    error = json.loads(reply.content)["error"]
    text = error if isinstance(error, str) else error["message"]
    assert 0 < len(text) < _LONGEST_MESSAGE, len(text)


def check_compression(codec: Codec, head: Head, body: bytes, query: Query) -> None:
    """Fail unless the compressed body has the images of the plain one."""
    plain = zlib.decompress(body, 15 + 32)  # gzip or zlib by its header
    assert len(plain) <= LIMITS.max_body_bytes
    other = codec.decode(head._replace(encoding=b""), plain, LIMITS)
    assert np.array_equal(other.images, query.images)


def mutate(data: bytes, max_size: int, choices: random.Random, mutation: Mutation) -> bytes:
    """Mutate the body of an input, and sometimes its headers; of a compressed one mostly the plain body."""
    lines, separator, body = data.partition(b"\n\n")
    if not separator or choices.random() < 0.1:
        return mutation(data, max_size)
    room = max(1, max_size - len(lines) - 2)
    encoding = split(data)[0].get(b"content-encoding", b"")
    if encoding in _WINDOW_BITS and choices.random() < 0.7:
        try:
            plain = zlib.decompressobj(_WINDOW_BITS[encoding]).decompress(body, LIMITS.max_body_bytes)
        except zlib.error:
            plain = body
        plain = mutate_picture(plain, 4 * room, choices, mutation)
        compressor = zlib.compressobj(wbits=_WINDOW_BITS[encoding])
        return lines + separator + (compressor.compress(plain) + compressor.flush())[:room]
    return lines + separator + mutate_picture(body, room, choices, mutation)


def compress(encoding: bytes, body: bytes) -> bytes:
    """Compress a body."""
    compressor = zlib.compressobj(wbits=_WINDOW_BITS[encoding])
    return compressor.compress(body) + compressor.flush()


def json_seeds() -> list[bytes]:
    """Return bodies of `POST /predict` in JSON."""
    digits = base64.b64encode(small_picture()).decode()
    documents = [
        {"image": [[index % 256 for index in range(row, row + 28)] for row in range(28)]},
        {"image": list(range(256)) * 3 + [0] * 16},
        {"images": [[0] * 784, [[1] * 28] * 28]},
        {"image": digits},
        {"images": [digits, f"data:image/png;base64,{digits}"]},
        {"image": [0] * 783 + [256]},
        {"image": [True] * 784},
        {"image": None},
        {"images": []},
        [0],
    ]
    bodies = [json.dumps(one, separators=(",", ":")).encode() for one in documents]
    bodies += [
        b"\xef\xbb\xbf" + bodies[3],
        bodies[3].decode().encode("utf-16"),
        b"{'image': 1}",
        b'{"image": NaN}',
    ]
    bodies += [b'{"image":"\\ud83d\\ude00"}', b'"{\\"image\\": 0}"', b'{"image":0,"image":1}']
    bodies += NUMBERS
    return [message(_JSON, body=body) for body in bodies] + [
        message(b"?: include=input", _JSON, body=bodies[0])
    ]


NUMBERS = [
    b'{"image":1e999}',
    b'{"image":[-0.0,1E-999,255.0]}',
    b'{"image":' + b"9" * 5000 + b"}",
    b'{"image":' + b"[" * 1000 + b"]" * 1000 + b"}",
    b'{"image":' * 500 + b"0" + b"}" * 500,
    b'{"image":"\\ud800"}',
    b'{"image":"\xff"}',
]
"""Values that parsers differ about."""


def picture_seeds() -> list[bytes]:
    digits = base64.b64encode(small_picture())
    bodies = [*pictures(), digits, b"data:image/png;base64," + digits]
    return [message(b"Content-Type: image/png", body=body) for body in bodies]


def form_seeds() -> list[bytes]:
    """Return forms as browsers, curl and hand-written clients send them."""
    picture = small_picture()
    disposition = b'Content-Disposition: form-data; name="f"; filename="7.png"'
    file = b"--x\r\n%s\r\nContent-Type: image/png\r\n\r\n%s\r\n" % (disposition, picture)
    field = b'--x\r\nContent-Disposition: form-data; name="t"\r\n\r\n7\r\n'
    encoded = b"--x\r\nContent-Disposition: form-data; name=a; filename*=UTF-8''7%2e.png\r\n\r\n"
    bodies = [
        file + b"--x--\r\n",
        field + file + file + b"--x--\r\n",
        field + b"--x--",
        b"preamble\r\n" + file + b"--x--\r\nepilogue",
        b"--x\r\n\r\n" + picture + b"\r\n--x--\r\n",
        encoded + picture + b"\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="f"; filename=""\r\n\r\n\r\n--x--\r\n',
        field * 20 + file + b"--x--\r\n",
        file,
        file.replace(b"\r\n", b"\n"),
    ]
    return [message(_FORM, body=body) for body in bodies] + [
        message(b"Content-Type: multipart/form-data", body=bodies[0]),
        message(b'Content-Type: multipart/form-data; a=b; boundary="x"', body=bodies[0]),
    ]


def compressed_seeds() -> list[bytes]:
    """Return compressed bodies, among them bombs and bodies that are compressed twice."""
    bodies = [split(one)[2] for one in (*json_seeds()[:6], *picture_seeds()[:4])]
    bodies += [bytes(784), bytes(1_000_000), compress(b"gzip", bytes(1_000_000)), b""]
    seeds = []
    for encoding in _WINDOW_BITS:
        header = b"Content-Encoding: " + encoding
        seeds += [message(header, _RAW, body=compress(encoding, body)) for body in bodies]
        whole = compress(encoding, bodies[0])
        seeds += [message(header, body=other) for other in (whole[:-1], whole * 2, whole + b"\0", whole[4:])]
    return [*seeds, message(b"Content-Encoding: x-gzip", body=compress(b"gzip", bodies[0]))]


def raw_seeds() -> list[bytes]:
    bodies = [bytes(784), bytes(range(256)) * 49, bytes(783), b"\0\0\x08\x03" + bytes(780), b"\x93NUMPY", b""]
    return [message(_RAW, body=body) for body in bodies] + [message(body=body) for body in bodies]


def read_seeds() -> list[bytes]:
    form = message(_FORM, body=split(form_seeds()[0])[2])
    return [*picture_seeds(), form, json_seeds()[0], json_seeds()[3], raw_seeds()[0]]


def tensor(**changes: object) -> dict[str, object]:
    return {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28]} | changes


def v2_seeds() -> list[bytes]:
    """Return requests of the Open Inference Protocol whose tensors are in the JSON."""
    flat, nested = [index % 256 for index in range(784)], [[[7] * 28] * 28]
    outputs = [
        {"name": "probabilities", "parameters": {"classification": 3, "binary_data": True}},
        {"name": "logits", "parameters": {"binary_data": True}},
        {"name": "accepted"},
    ]
    documents = [
        {"inputs": [tensor(data=flat)], "id": "a\u20ac"},
        {"inputs": [tensor(data=nested)], "outputs": outputs},
        {"inputs": [tensor(data=flat)], "parameters": {"binary_data_output": True, "priority": 1}},
        {"inputs": [tensor(data=[True] * 784)], "parameters": {"sequence_id": 1}},
        {"inputs": [tensor(shape=[2, 28, 28], data=nested * 2)]},
        {"inputs": [tensor(parameters={"shared_memory_region": "r"})]},
        {"inputs": []},
    ]
    bodies = [json.dumps(one, separators=(",", ":")).encode() for one in documents]
    return [message(_JSON, body=body) for body in bodies + NUMBERS]


def v2_binary_seeds() -> list[bytes]:
    """Return requests of the Open Inference Protocol with the extension for binary tensors."""
    header = b"Inference-Header-Content-Length: "
    document = {"inputs": [tensor(shape=[2, 28, 28], parameters={"binary_data_size": 1568})], "id": "7"}
    text = json.dumps(document, separators=(",", ":")).encode()
    body = text + bytes(range(256)) * 6 + bytes(32)
    length = header + b"%d" % len(text)
    return [
        message(length, body=body),
        message(length, b"Content-Encoding: gzip", body=compress(b"gzip", body)),
        message(length, body=body[:-1]),
        message(header + b"0", body=bytes(784)),
        message(header + b"0", body=b""),
        message(header + b"%d" % len(body), body=body),
        message(header + b"999999999999999999", body=body),
        message(header + b"-1", body=body),
        message(_JSON, body=body),
    ]


JSON_WORDS = (
    *(
        b'"image"',
        b'"images"',
        b"null",
        b"true",
        b"false",
        b"NaN",
        b"Infinity",
        b"-1",
        b"256",
        b"1e999",
        b"0.5",
    ),
    *(
        b"9" * 20,
        b"[[[[[[[[",
        b"{}",
        b'"data:image/png;base64,',
        b"\\ud800",
        b"\\u0000",
        b"\xef\xbb\xbf",
        b"\xff",
    ),
)
V2_WORDS = (
    *(b'"inputs"', b'"outputs"', b'"parameters"', b'"data"', b'"shape"', b'"datatype"', b'"id"', b'"name"'),
    *(
        b'"binary_data_size"',
        b'"binary_data"',
        b'"binary_data_output"',
        b'"classification"',
        b'"sequence_id"',
    ),
    *(b'"shared_memory_region"', b'"logits"', b'"confidence"', b"[1,28,28]", *JSON_WORDS[2:14]),
)
FORM_WORDS = (
    *(
        b"--x\r\n",
        b"\r\n--x--\r\n",
        b"Content-Disposition: form-data",
        b'; filename="',
        b"; filename*=UTF-8''%",
    ),
    *(b'; name="', b"\r\n\r\n", b"boundary=", b"Content-Transfer-Encoding: base64", b'\\"', b"--"),
)
ENCODING_WORDS = (b"Content-Encoding: gzip", b"deflate", b"\x1f\x8b\x08", b"identity", b"x-gzip", b"\x78\x9c")

_predict, _read = partial(decode, PREDICT, STATUSES), partial(decode, READ, STATUSES)
_v2 = partial(decode, V2, V2_STATUSES)
TARGETS = (
    Target("json", json_seeds, _predict, JSON_WORDS, mutate),
    Target("pictures", picture_seeds, _predict, (), mutate),
    Target("form", form_seeds, _predict, FORM_WORDS, mutate),
    Target("compressed", compressed_seeds, _predict, ENCODING_WORDS, mutate),
    Target("raw", raw_seeds, _predict, (_RAW, _JSON), mutate),
    Target("read", read_seeds, _read, (), mutate),
    Target("v2", v2_seeds, _v2, V2_WORDS, mutate),
    Target("v2-binary", v2_binary_seeds, _v2, (*V2_WORDS, b"Inference-Header-Content-Length: 0"), mutate),
)
