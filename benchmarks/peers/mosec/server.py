"""One of our models behind mosec with dynamic batching, a worker process per core.

MODEL=model.onnx PROCESSES=2 python server.py --address 127.0.0.1 --port 8001
curl 127.0.0.1:8001/inference -d '{"image": [[0, ...], ...]}'
"""

import os
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson
from mosec import Server, Worker


class Digits(Worker):
    """`{"image": 28 rows of 28 ink values}` to `{"probabilities": [10]}`; the images of a batch become one run."""

    def __init__(self) -> None:
        super().__init__()
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    def deserialize(self, data: bytes) -> np.ndarray:
        return np.array(orjson.loads(data)["image"], dtype=np.uint8)

    def forward(self, data: list[np.ndarray]) -> list[np.ndarray]:
        (probabilities,) = self.session.run(["probabilities"], {"image": np.stack(data)})
        return list(probabilities)

    def serialize(self, data: np.ndarray) -> bytes:
        answer: dict[str, Any] = {"probabilities": data}
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Digits, num=int(os.environ["PROCESSES"]), max_batch_size=16, max_wait_time=1)
    server.run()
