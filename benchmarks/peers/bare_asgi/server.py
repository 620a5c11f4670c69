"""One of our models behind a bare ASGI application, one image per run, a process per core.

python server.py model.onnx 8001 2
curl 127.0.0.1:8001/predict -d '{"image": [[0, ...], ...]}'
"""

import multiprocessing
import socket
import sys
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson
import uvicorn

JSON = (b"content-type", b"application/json")


class Application:
    """`{"image": 28 rows of 28 ink values}` to `{"probabilities": [10]}`; every other route is its health."""

    def __init__(self, model: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        answer = {"status": "ok"} if scope["path"] == "/health" else self.predict(await read_body(receive))
        body = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = [JSON, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def predict(self, body: bytes) -> dict[str, Any]:
        image = np.array([orjson.loads(body)["image"]], dtype=np.uint8)
        (probabilities,) = self.session.run(["probabilities"], {"image": image})
        return {"probabilities": probabilities[0]}


async def read_body(receive: Any) -> bytes:
    """Read the whole body."""
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message.get("more_body"):
            return body


def serve(model: str, port: int) -> None:
    """Serve from a socket of this process; the kernel distributes connections over the sockets."""
    listener = socket.create_server(("127.0.0.1", port), backlog=2048, reuse_port=True)
    config = uvicorn.Config(
        Application(model), loop="uvloop", http="httptools", lifespan="off", access_log=False
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    for _ in range(int(sys.argv[3])):
        multiprocessing.Process(target=serve, args=(sys.argv[1], int(sys.argv[2]))).start()
