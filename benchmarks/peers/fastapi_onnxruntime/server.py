"""One of our models behind FastAPI and onnxruntime, one image per run, a process per core.

python server.py model.onnx 8001 2
curl 127.0.0.1:8001/predict -H 'Content-Type: application/json' -d '{"image": [[0, ...], ...]}'
"""

import multiprocessing
import socket
import sys

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Request(BaseModel):
    """28 rows of 28 ink values."""

    image: list[list[int]]


class Response(BaseModel):
    """One probability per digit."""

    probabilities: list[float]


def make_app(model: str) -> FastAPI:
    """Open one session per process and run it on the event loop: a run is shorter than the hand-over to a thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    app = FastAPI()

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        image = np.array([request.image], dtype=np.uint8)
        (probabilities,) = session.run(["probabilities"], {"image": image})
        return Response(probabilities=probabilities[0].tolist())

    return app


def serve(model: str, port: int) -> None:
    """Serve from a socket of this process; the kernel distributes connections over the sockets."""
    listener = socket.create_server(("127.0.0.1", port), backlog=2048, reuse_port=True)
    config = uvicorn.Config(make_app(model), loop="uvloop", http="httptools", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    for _ in range(int(sys.argv[3])):
        multiprocessing.Process(target=serve, args=(sys.argv[1], int(sys.argv[2]))).start()
