"""One of our models behind Ray Serve with dynamic batching, a replica per core.

python server.py model.onnx 8001 2
curl 127.0.0.1:8001/predict -H 'Content-Type: application/json' -d '{"image": [[0, ...], ...]}'
"""

import signal
import sys

import numpy as np
import onnxruntime as ort
import orjson
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(max_ongoing_requests=64, ray_actor_options={"num_cpus": 1})
class Digits:
    """`{"image": 28 rows of 28 ink values}` to `{"probabilities": [10]}`."""

    def __init__(self, model: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    async def __call__(self, request: Request) -> Response:
        image = np.array(orjson.loads(await request.body())["image"], dtype=np.uint8)
        answer = {"probabilities": await self.predict(image)}
        return Response(
            orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json"
        )

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.002)
    async def predict(self, images: list[np.ndarray]) -> list[np.ndarray]:
        (probabilities,) = self.session.run(["probabilities"], {"image": np.stack(images)})
        return list(probabilities)


if __name__ == "__main__":
    model, port, replicas = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    ray.init(num_cpus=replicas, include_dashboard=False, logging_level="warning")
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Digits.options(num_replicas=replicas).bind(model), route_prefix="/predict")
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    serve.shutdown()
