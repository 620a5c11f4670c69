"""Settings of the service; the command that takes them is in `serving.__main__`."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, SecretStr

from distillery import Command
from distillery.machine import usable_cores


class ListenSettings(Command):
    """Addresses and processes."""

    group = "server"

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0: all interfaces")
    port: int = Field(8000, ge=0, le=65535, description="HTTP port; 0: any free one")
    grpc_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="also serve gRPC on this port; 0: any free one; needs the extra grpc",
    )
    api_servers: PositiveInt = Field(
        default_factory=usable_cores, description="API processes; default: one per core"
    )
    fast_path: bool = Field(
        True, description="serve the repeated requests of a connection without uvicorn's parser"
    )
    shutdown_delay: float = Field(
        0.0,
        ge=0,
        le=600,
        description="seconds between SIGTERM and the shutdown, in which /health/ready fails and requests are served: "
        "set it where a load balancer or Kubernetes needs time to notice",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "warning", description="least severe messages to log"
    )


class InferenceSettings(Command):
    """Where and how models run."""

    group = "inference"

    executor: Literal["inprocess", "workers"] = Field(
        "inprocess", description="run models in the API processes, or in LitServe's worker processes"
    )
    workers_per_model: PositiveInt = Field(
        1, description="worker processes per model, with --executor workers"
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="device to run models on; cuda needs onnxruntime-gpu"
    )
    threads: PositiveInt = Field(1, description="CPU threads per inference run")
    max_batch: PositiveInt = Field(64, description="maximum images per batch")
    reject_unaccepted: bool = Field(
        False,
        description="respond with status 422 if the confidence in a prediction is below the model's threshold",
    )


class LimitSettings(Command):
    """Limits of a request."""

    group = "limit"

    api_key: SecretStr | None = Field(
        None,
        description="key that prediction requests must send in the header X-API-Key; set DISTILLERY_API_KEY rather "
        "than this option, which other users of the machine can see",
    )
    max_body_bytes: PositiveInt = Field(16 * 1024 * 1024, description="maximum size of a request body")
    max_images: PositiveInt = Field(256, description="maximum images per request")
    max_pixels: PositiveInt = Field(
        16_000_000, description="maximum pixels that decoding the pictures of a request may hold in memory"
    )
    max_in_flight: PositiveInt = Field(
        1024, description="maximum requests in flight per API process; further ones get status 503"
    )
    request_timeout: float = Field(
        5.0, gt=0, le=3600, description="maximum time to receive a body, and to compute a response"
    )


class ServiceSettings(ListenSettings, InferenceSettings, LimitSettings):
    """All settings of the service."""

    models_dir: Path = Field(Path("models"), description="model repository, as distillery-export writes it")
    default_model: str | None = Field(
        None,
        description="model that answers POST /predict; default: fast-int8, student-int8, student or the first",
    )
