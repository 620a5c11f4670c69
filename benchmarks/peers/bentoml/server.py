"""One of our models behind BentoML with adaptive batching, a worker process per core.

MODEL=model.onnx PROCESSES=2 python -m bentoml serve server:Digits --port 8001
curl 127.0.0.1:8001/predict -H 'Content-Type: application/json' -d '{"images": [[[0, ...], ...]]}'
"""

import os
from typing import Annotated

import bentoml
import numpy as np
import onnxruntime as ort
from bentoml.validators import DType, Shape

Images = Annotated[np.ndarray, Shape((-1, 28, 28)), DType("uint8")]
Probabilities = Annotated[np.ndarray, Shape((-1, 10)), DType("float32")]


@bentoml.service(
    workers=int(os.environ["PROCESSES"]),
    logging={"access": {"enabled": False}},
)
class Digits:
    """`{"images": [N][28][28]}` to `[N][10]`; the images of several requests become one run."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        model = os.environ["MODEL"]
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    @bentoml.api(batchable=True, max_batch_size=100, max_latency_ms=1000)
    async def predict(self, images: Images) -> Probabilities:
        (probabilities,) = self.session.run(["probabilities"], {"image": images})
        return probabilities
