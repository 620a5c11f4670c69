"""One of our models behind LitServe, as in the first example of its documentation.

    python server.py model.onnx 8001
    curl -X POST 127.0.0.1:8001/predict -H "Content-Type: application/json" -d '{"input": [[0, ...], ...]}'

Only `setup` and `predict`, no batching, one worker process, all settings at their defaults.
"""

import sys
from typing import Any

import litserve as ls
import numpy as np
import onnxruntime as ort


class FirstExample(ls.LitAPI):
    """`{"input": 28 rows of 28 ink values}` to `{"output": 10 probabilities}`."""

    model_path = ""

    def setup(self, device: str) -> None:  # noqa: ARG002 - the signature is LitServe's
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # as in our service
        self.session = ort.InferenceSession(self.model_path, options, providers=["CPUExecutionProvider"])

    def predict(self, request: dict[str, Any]) -> dict[str, list[float]]:
        image = np.array([request["input"]], dtype=np.uint8)
        (probabilities,) = self.session.run(["probabilities"], {"image": image})
        return {"output": probabilities[0].tolist()}


if __name__ == "__main__":
    api = FirstExample(max_batch_size=1)
    api.model_path = sys.argv[1]
    server = ls.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False)
