"""Binary tensors of the Open Inference Protocol, as the load generators send and read them."""

import json
from http.client import HTTPMessage

import numpy as np
import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.load.digits import load_digits
from benchmarks.load.v2_tensors import LENGTH, pack, unpack


def test_digits_are_packed_and_probabilities_unpacked() -> None:
    digits = load_digits()[:8]
    headers, body = pack(digits)
    length = int(headers[LENGTH])
    (tensor,) = json.loads(body[:length])["inputs"]
    assert (tensor["shape"], tensor["datatype"]) == ([8, 28, 28], "UINT8")
    np.testing.assert_array_equal(np.frombuffer(body[length:], np.uint8).reshape(8, 28, 28), digits)
    probabilities = np.arange(20, dtype="<f4").reshape(2, 10)
    described = {"name": "probabilities", "datatype": "FP32", "shape": [2, 10]}
    document = json.dumps({"outputs": [described]}).encode()
    answer = HTTPMessage()
    answer[LENGTH.lower()] = str(len(document))
    np.testing.assert_array_equal(unpack(answer, document + probabilities.tobytes()), probabilities)
    with pytest.raises(BenchmarkError, match="no binary tensor"):
        unpack(HTTPMessage(), b'{"outputs": []}')
