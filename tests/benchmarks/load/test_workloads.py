"""Binary probabilities in the responses that the load generators check."""

import json
from http.client import HTTPMessage

import numpy as np
import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.load.workloads import read_binary_probabilities
from serving.client.tensors import LENGTH


def test_probabilities_are_read_and_their_absence_is_an_error() -> None:
    probabilities = np.arange(20, dtype="<f4").reshape(2, 10)
    parameters = {"binary_data_size": probabilities.nbytes}
    document = json.dumps({"outputs": [{"name": "probabilities", "parameters": parameters}]}).encode()
    headers = HTTPMessage()
    headers[LENGTH.lower()] = str(len(document))
    body = document + probabilities.tobytes()
    np.testing.assert_array_equal(read_binary_probabilities(headers, body), probabilities)
    with pytest.raises(BenchmarkError, match="no binary tensor"):
        read_binary_probabilities(HTTPMessage(), b'{"outputs": []}')
