"""`distillery-serve`: answer predictions over HTTP with every model of a repository.

python -m serving --models-dir models --port 8000
"""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from distillery import Command

Positive = Annotated[int, Field(gt=0)]


def usable_cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0))


class Serve(Command):
    """Answer predictions over HTTP with every model of a repository.

    Small models run inside the API processes; --executor workers runs them in processes of their own.
    """

    models_dir: Annotated[Path, Field(description="the model repository that `make export` writes")] = Path(
        "models"
    )
    host: Annotated[str, Field(description="address to listen on; 0.0.0.0 for all")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="0 takes a free one")] = 8000
    grpc_port: Annotated[
        int | None,
        Field(ge=0, le=65535, description="answer gRPC there too; needs the extra grpc; 0 takes a free one"),
    ] = None
    api_servers: Annotated[Positive, Field(description="API processes; by default one for each core")] = (
        Field(default_factory=usable_cores)
    )
    executor: Annotated[
        Literal["inprocess", "workers"],
        Field(description="where models run: in the API processes, or in LitServe's workers"),
    ] = "inprocess"
    workers_per_model: Annotated[Positive, Field(description="with --executor workers")] = 1
    device: Annotated[Literal["cpu", "cuda"], Field(description="cuda needs onnxruntime-gpu")] = "cpu"
    default_model: Annotated[
        str | None,
        Field(description="answers POST /predict; by default student-int8, else student, else the first"),
    ] = None
    threads: Annotated[Positive, Field(description="threads of one run of a model")] = 1
    max_batch: Annotated[Positive, Field(description="images that requests are joined up to")] = 64
    max_body_bytes: Annotated[Positive, Field(description="of one request")] = 4 * 1024 * 1024
    max_images: Annotated[Positive, Field(description="in one request")] = 256
    max_pixels: Annotated[Positive, Field(description="of all pictures in one request together")] = 4_000_000
    max_in_flight: Annotated[Positive, Field(description="requests an API process holds; more get 503")] = (
        1024
    )
    request_timeout: Annotated[
        float, Field(gt=0, le=3600, description="seconds for a body to arrive, and for its answer")
    ] = 5.0
    fast_path: Annotated[
        bool, Field(description="serve repeated requests of a connection without uvicorn's parser")
    ] = True
    api_key: Annotated[
        SecretStr | None,
        Field(description="what X-API-Key must say; better set as DISTILLERY_API_KEY than as a flag"),
    ] = None
    log_level: Literal["debug", "info", "warning", "error"] = "warning"

    def run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="distillery-metrics-") as folder:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # read when prometheus_client is imported
            from serving.service import serve  # noqa: PLC0415

            serve(self)
