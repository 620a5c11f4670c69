"""Invalid requests below /v2: the status, and a message that names the value found and what is expected."""

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from serving.codecs import errors
from serving.codecs.bodies.decompress import decompress
from serving.codecs.open_inference.rest import OpenInferenceCodec
from serving.codecs.open_inference.schemas import InferError
from tests.support.service import Service

INFER = "/v2/models/student/infer"
LENGTH = "Inference-Header-Content-Length"
BLANK = [0] * 784
DEEP = b"[" * 500 + b"]" * 500
MAX_BODY = 16 * 1024 * 1024


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=10) as client:
        yield client
        answer = client.post(INFER, json=asking())
        assert answer.status_code == 200, "the service still works after all these errors"


def asking(**fields: Any) -> dict[str, Any]:
    """A valid request, except for these fields of its tensor."""
    tensor = {"name": "image", "shape": [1, 28, 28], "datatype": "UINT8", "data": BLANK} | fields
    return {"inputs": [{key: value for key, value in tensor.items() if value is not ...}]}


def wanting(*outputs: Any, **fields: Any) -> dict[str, Any]:
    """A valid request, except for the outputs it requests."""
    return asking() | ({"outputs": list(outputs)} if outputs else {}) | fields


EVERY = [{"name": name} for name in ("logits", "probabilities", "confidence", "accepted")]


def logits(**parameters: Any) -> dict[str, Any]:
    return {"name": "logits", "parameters": parameters}


def pixel(value: Any) -> list[Any]:
    return [*BLANK[:3], value, *BLANK[4:]]


def rows(**changed: Any) -> list[Any]:
    """One image as nested lists, with row 5 replaced."""
    return [[changed.get("row", [0] * 28) if index == 5 else [0] * 28 for index in range(28)]]


def refused(answer: httpx.Response, status: int, message: str) -> None:
    error = InferError.model_validate_json(answer.content, strict=True).error
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/json"), error
    assert message in error
    assert len(error) < 300


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([1], "the body is a list of 1; expected an object"),
        ({}, "inputs is null; expected a list with one tensor, 'image'"),
        ({"inputs": {}}, "inputs is an empty object"),
        ({"inputs": []}, "inputs is empty; expected one tensor, 'image'"),
        ({"inputs": [7]}, "inputs[0] is the number 7; expected an object"),
        ({"inputs": asking()["inputs"] * 2}, "inputs has 'image' twice"),
        ({"inputs": [*asking()["inputs"], {"name": "mask"}]}, "inputs[1].name is the string 'mask'"),
        (asking(name="input0"), "inputs[0].name is the string 'input0'; expected 'image'"),
        (asking(name=...), "inputs[0].name is null"),
        (asking(datatype="FP32"), "inputs[0].datatype is the string 'FP32'; expected 'UINT8'"),
        (asking(datatype=8), "inputs[0].datatype is the number 8"),
        (asking(datatype=...), "inputs[0].datatype is null"),
        (asking(shape=...), "inputs[0].shape is null; expected [N,28,28]"),
        (asking(shape="1,28,28"), "inputs[0].shape is the string '1,28,28'"),
        (asking(shape=[]), "inputs[0].shape is []"),
        (asking(shape=[28, 28]), "inputs[0].shape is [28, 28]"),
        (asking(shape=[1, 28, 27]), "inputs[0].shape is [1, 28, 27]"),
        (asking(shape=[1, 784]), "inputs[0].shape is [1, 784]"),
        (asking(shape=[1, 1, 28, 28]), "inputs[0].shape is [1, 1, 28, 28]"),
        (asking(shape=[1, -28, -28]), "inputs[0].shape is [1, -28, -28]"),
        (asking(shape=[0, 28, 28], data=[]), "N ≥ 1"),
        (asking(shape=[-1, 28, 28]), "N ≥ 1"),
        (asking(shape=[True, 28, 28]), "inputs[0].shape is [True, 28, 28]"),
        (asking(shape=[1.0, 28, 28]), "inputs[0].shape is [1.0, 28, 28]"),
        (asking(shape=[1, 28.0, 28]), "inputs[0].shape is [1, 28.0, 28]"),
        (asking(shape=["1", 28, 28]), "inputs[0].shape is ['1', 28, 28]"),
        (asking(shape=[[1], 28, 28]), "inputs[0].shape is [[1], 28, 28]"),
        (asking(shape=[201, 28, 28]), "inputs[0].shape is [201, 28, 28]; the limit is 200 images"),
        (asking(shape=[2**63, 28, 28]), "the limit is 200 images"),
        (asking(shape=[10**30, 28, 28]), "inputs[0].shape is [1e+30, 28, 28]"),
        (asking(shape=[1] * 10_000), "inputs[0].shape is [1, 1, 1"),
        (asking(data=...), "inputs[0] has neither data nor parameters.binary_data_size"),
        (asking(data=None), "inputs[0].data is null; expected a list of pixels"),
        (asking(data="AAAA"), "inputs[0].data is the string 'AAAA'"),
        (asking(data=[]), "inputs[0].data has 0 lists; shape [1,28,28] takes 1"),
        (asking(data=BLANK[1:]), "inputs[0].data has 783 values; shape [1,28,28] takes 784"),
        (asking(data=BLANK * 2), "inputs[0].data has 1,568 values; shape [1,28,28] takes 784"),
        (asking(data=[BLANK] * 2), "inputs[0].data has 2 lists; shape [1,28,28] takes 1"),
        (asking(data=[[0] * 28] * 28), "inputs[0].data has 28 lists; shape [1,28,28] takes 1"),
        (asking(data=pixel(256)), "inputs[0].data[3] is 256; expected an integer 0–255"),
        (asking(data=pixel(-1)), "inputs[0].data[3] is -1"),
        (asking(data=pixel(0.5)), "inputs[0].data[3] is the number 0.5"),
        (asking(data=pixel(True)), "inputs[0].data[3] is true"),
        (asking(data=pixel(None)), "inputs[0].data[3] is null"),
        (asking(data=pixel([0])), "inputs[0].data[3] is a list of 1"),
        (asking(data=pixel("0")), "inputs[0].data[3] is the string '0'"),
        (asking(data=[pixel(256)]), "inputs[0].data[0][3] is 256"),
        (asking(data=rows(row=[0] * 27)), "inputs[0].data[0][5] has 27 values; expected 28"),
        (asking(data=rows(row=[0] * 27 + [300])), "inputs[0].data[0][5][27] is 300"),
        (asking(data=rows(row=[0] * 27 + [False])), "inputs[0].data[0][5][27] is false"),
        (asking(data=rows(row=28)), "inputs[0].data[0] has 28 values"),
        (asking(data=[rows()[0][1:]]), "inputs[0].data[0] has 27 rows; expected 28 rows of 28 integers"),
        (asking(data=[[BLANK]]), "inputs[0].data[0] has 1 rows"),
        (asking(shape=[2, 28, 28], data=[BLANK, 784]), "inputs[0].data[1] is the number 784"),
        (asking(shape=[2, 28, 28], data=[BLANK, "x"]), "inputs[0].data[1] is the string 'x'"),
        (asking(parameters=[1]), "inputs[0].parameters is a list of 1; expected an object"),
        (asking(parameters={"binary_data_size": 784}), "inputs[0] has both data and parameters.binary_data_size"),
        (asking(parameters={"shared_memory_region": "r"}), "shared memory is not supported"),
        (wanting(id=42), "id is the number 42; expected a string"),
        (wanting(parameters="x"), "parameters is the string 'x'; expected an object"),
        (wanting(parameters={"binary_data_output": 1}), "parameters.binary_data_output is the number 1"),
        (wanting(parameters={"sequence_id": 7}), "parameters.sequence_id is the number 7; these models keep no state"),
        (wanting(parameters={"sequence_start": True}), "parameters.sequence_start is true"),
        (wanting(outputs="logits"), "outputs is the string 'logits'; expected a list"),
        (wanting(outputs={}), "outputs is an empty object; expected a list"),
        (wanting("logits"), "outputs[0] is the string 'logits'; expected an object"),
        (wanting({"name": "digit"}), "'digit'; expected logits or probabilities or confidence or accepted"),
        (wanting({}), "outputs[0].name is null"),
        (wanting({"name": ["logits"]}), "outputs[0].name is a list of 1"),
        (wanting({"name": "logits"}, {"name": "logits"}), "outputs has 'logits' twice"),
        (wanting(*EVERY, {"name": "escalated"}, {}), "outputs has 6 entries; expected at most 5"),
        (wanting({"name": "accepted", "parameters": {"classification": 1}}), "classification: accepted has no classes"),
        (wanting(logits(binary_data="yes")), "binary_data is the string 'yes'; expected true or false"),
        (wanting(logits(classification=-1)), "parameters.classification is the number -1"),
        (wanting(logits(classification=True)), "classification is true"),
        (wanting(logits(shared_memory_region="r")), "shared memory is not supported"),
    ],
)  # fmt: skip
def test_an_invalid_document_is_reported(client: httpx.Client, document: Any, message: str) -> None:
    refused(client.post(INFER, json=document), 400, message)


def announcing(size: Any, **fields: Any) -> bytes:
    return json.dumps(asking(data=..., parameters={"binary_data_size": size}, **fields)).encode()


GOOD = announcing(784)


@pytest.mark.parametrize(
    ("text", "blob", "length", "message"),
    [
        (GOOD, bytes(783), None, "783 bytes follow the JSON, but inputs[0].parameters.binary_data_size is 784"),
        (GOOD, bytes(785), None, "785 bytes follow the JSON, but inputs[0].parameters.binary_data_size is 784"),
        (GOOD, b"", None, "0 bytes follow the JSON, but inputs[0].parameters.binary_data_size is 784"),
        (announcing(783), bytes(783), None, "binary_data_size is the number 783; shape [1,28,28] of UINT8"),
        (announcing(784, shape=[2, 28, 28]), bytes(784), None, "shape [2,28,28] of UINT8 takes 1,568 bytes"),
        (announcing(-784), bytes(784), None, "binary_data_size is the number -784"),
        (announcing("784"), bytes(784), None, "binary_data_size is the string '784'"),
        (announcing(784.0), bytes(784), None, "binary_data_size is the number 784.0"),
        (announcing(True), bytes(784), None, "binary_data_size is true"),
        (announcing(2**62), bytes(784), None, "binary_data_size is the number 4611686018427387904"),
        (json.dumps(asking()).encode(), bytes(5), None, "5 bytes follow the JSON, but no input has binary_data_size"),
        (GOOD, bytes(784), len(GOOD) + 785, f"but the body has {len(GOOD) + 784:,} bytes"),
        (GOOD, bytes(784), 10**17, f"{LENGTH} is 100,000,000,000,000,000, but the body has"),
        (GOOD, bytes(784), len(GOOD) - 1, f"up to byte {len(GOOD) - 1:,}; with a binary tensor"),
        (GOOD, bytes(784), len(GOOD) + 1, f"up to byte {len(GOOD) + 1:,}; with a binary tensor"),
        (GOOD, bytes(784), "-1", f"{LENGTH} is '-1'; expected a number of bytes"),
        (GOOD, bytes(784), "12a", f"{LENGTH} is '12a'; expected a number of bytes"),
        (GOOD, bytes(784), "", f"{LENGTH} is ''; expected a number of bytes"),
        (GOOD, bytes(784), "9" * 5000, f"{LENGTH} is '999"),
        (b"", bytes(783), 0, f"{LENGTH} is 0, so the body is pixels: found 783 bytes, expected N times 784"),
        (b"", b"", 0, "found 0 bytes"),
        (b"", bytes(784 * 201), 0, "the body has 201 images; the limit is 200"),
    ],
)  # fmt: skip
def test_inconsistent_lengths_are_reported(
    client: httpx.Client, text: bytes, blob: bytes, length: int | str | None, message: str
) -> None:
    headers = {LENGTH: str(len(text) if length is None else length)}
    refused(client.post(INFER, content=text + blob, headers=headers), 400, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the body is not JSON: it is empty"),
        ("{}".encode("utf-16"), "the body is not JSON: it is UTF-16 or UTF-32; encode it as UTF-8"),
        (b"\x89PNG\r\n\x1a\n", "the body is not JSON: it is PNG; POST /predict takes pictures"),
        (b"{}, " * 1_000_000, "the JSON has 1,000,000 values; one request may carry 200 images"),
        (b"{", "the body is not JSON"),
        (GOOD + bytes(784), f"with a binary tensor, {LENGTH} is the length of the JSON"),
        (b'{"id": "\xff"}', "the body is not JSON"),
        (b'{"id": NaN}', "the body is not JSON"),
        (b"[" * 50_000, "the body is not JSON"),
        (b'{"inputs":' + DEEP + b"}", "inputs[0] is a list of 1; expected an object"),
        (json.dumps(asking()).encode().replace(b"[0,", b"[" + DEEP + b",", 1), "inputs[0].data has 784 lists"),
    ],
)  # fmt: skip
def test_invalid_json_is_reported(client: httpx.Client, content: bytes, message: str) -> None:
    refused(client.post(INFER, content=content), 400, message)


PACKED = gzip.compress(json.dumps(asking()).encode(), mtime=0)


@pytest.mark.parametrize(
    ("encoding", "content", "status", "message"),
    [
        ("gzip", b"{}", 400, "the body is not valid gzip"),
        ("gzip", PACKED[:-9], 400, "the gzip body is truncated"),
        ("gzip", b"", 400, "the gzip body is truncated"),
        ("gzip", PACKED[:40] + b"\xff" * 5 + PACKED[45:], 400, "the body is not valid gzip"),
        ("gzip", PACKED + b"more", 400, "the gzip body is followed by 4 more bytes"),
        ("gzip", PACKED + PACKED, 400, f"the gzip body is followed by {len(PACKED):,} more bytes"),
        ("gzip", gzip.compress(PACKED, mtime=0), 400, "the body is not JSON"),
        ("gzip", gzip.compress(bytes(MAX_BODY + 1), 1, mtime=0), 413, f"more than the limit of {MAX_BODY:,} bytes"),
        ("gzip", gzip.compress(bytes(40_000_000), 1, mtime=0), 413, f"more than the limit of {MAX_BODY:,} bytes"),
        ("deflate", PACKED, 400, "the body is not valid deflate"),
        ("deflate", zlib.compress(bytes(40_000_000), 1), 413, f"more than the limit of {MAX_BODY:,} bytes"),
        ("br", b"", 415, "Content-Encoding is br; expected gzip or deflate"),
        ("gzip, gzip", gzip.compress(PACKED, mtime=0), 415, "Content-Encoding is gzip, gzip"),
    ],
)  # fmt: skip
def test_invalid_compressed_bodies_are_reported(
    client: httpx.Client, encoding: str, content: bytes, status: int, message: str
) -> None:
    answer = client.post(INFER, content=content, headers={"Content-Encoding": encoding})
    refused(answer, status, message)
    if status == 415:
        assert answer.headers["Accept-Encoding"] == "gzip, deflate"


def test_a_decompression_bomb_is_never_decompressed() -> None:
    bomb = zlib.compress(bytes(30_000_000))
    tracemalloc.start()
    with pytest.raises(errors.BodyTooLarge):
        decompress(b"deflate", bomb, 100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/v2/models/nobody/infer", 404, "there is no model 'nobody'; this service has student, "),
        ("POST", "/v2/models//infer", 404, "there is no model ''"),
        ("POST", "/v2/models/student/versions/2/infer", 404, "no version '2' of model 'student'; it has 1"),
        ("POST", "/v2/models/student/versions/01/infer", 404, "no version '01'"),
        ("POST", "/v2/models/student/versions/1/x/infer", 404, "no version '1/x'"),
        ("GET", "/v2/models/student/infer", 405, "found GET; expected POST"),
        ("GET", "/v2/models/nobody", 404, "there is no model 'nobody'"),
        ("GET", "/v2/models/nobody/ready", 404, "there is no model 'nobody'"),
        ("GET", "/v2/models/student/versions/2/config", 404, "no version '2'"),
        ("GET", "/v2/models/student/versions/%20", 404, "no version ' '"),
        ("GET", "/v2/nothing", 404, "GET /v2/nothing: Not Found"),
        ("POST", "/v2", 405, "POST /v2: Method Not Allowed"),
        ("DELETE", "/v2/health/live", 405, "DELETE /v2/health/live: Method Not Allowed"),
    ],
)  # fmt: skip
def test_unknown_paths_and_models_get_the_error_body_of_the_protocol(
    client: httpx.Client, method: str, path: str, status: int, message: str
) -> None:
    refused(client.request(method, path), status, message)


def test_a_body_over_the_limit_is_not_read(client: httpx.Client) -> None:
    refused(client.post(INFER, content=bytes(MAX_BODY + 1)), 413, f"the limit is {MAX_BODY:,}")


def test_every_error_has_its_status_and_the_error_body() -> None:
    statuses = {
        errors.MalformedBody: 400, errors.InvalidShape: 400, errors.InvalidRange: 400, errors.TooManyImages: 400,
        errors.Unauthorized: 401, errors.UnknownModel: 404, errors.SlowBody: 408, errors.BodyTooLarge: 413,
        errors.Overloaded: 503, errors.TimedOut: 504,
    }  # fmt: skip
    for kind, status in statuses.items():
        reply = OpenInferenceCodec().reject(kind("why"))
        assert (reply.status, json.loads(reply.content)) == (status, {"error": "why"})


def test_only_slow_decoding_leaves_the_event_loop() -> None:
    def quick(content: bytes, **headers: str) -> bool:
        names = {name.replace("_", "-").lower().encode(): value.encode() for name, value in headers.items()}
        codec = OpenInferenceCodec()
        return codec.decodes_inline(codec.check(names), content)

    assert quick(json.dumps(asking()).encode())
    assert quick(bytes(1_000_000), Inference_Header_Content_Length="200")
    assert not quick(bytes(1_000_000))
    assert not quick(bytes(1_000_000), Inference_Header_Content_Length="900000")
    assert not quick(PACKED, Content_Encoding="gzip")
