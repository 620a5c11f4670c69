"""The settings of the service. `serving.__main__` is the command that takes them."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, SecretStr

from distillery import Command
from distillery.machine import usable_cores

Positive = Annotated[int, Field(gt=0)]


class ModelOptions(Command):
    """What is served, and how one run of a model is made."""

    group: ClassVar[str] = "model"

    models_dir: Annotated[Path, Field(description="model repository, as `make export` writes it")] = Path(
        "models"
    )
    default_model: Annotated[
        str | None,
        Field(description="model of POST /predict (default: student-int8, else student, else the first one)"),
    ] = None
    device: Annotated[
        Literal["cpu", "cuda"], Field(description="device of the models; cuda needs onnxruntime-gpu")
    ] = "cpu"
    threads: Annotated[Positive, Field(description="threads of one run of a model")] = 1
    max_batch: Annotated[Positive, Field(description="maximum images per run, from several requests")] = 64


class NetworkOptions(Command):
    """Where the service listens, and to whom it answers."""

    group: ClassVar[str] = "network"

    host: Annotated[str, Field(description="address to listen on; 0.0.0.0 for all of the machine's")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Field(ge=0, le=65535, description="port of HTTP; 0 selects a free one")] = 8000
    grpc_port: Annotated[
        int | None,
        Field(
            ge=0, le=65535, description="port of gRPC, off by default; 0 selects a free one; needs '.[grpc]'"
        ),
    ] = None
    api_key: Annotated[
        SecretStr | None,
        Field(
            description="key that requests must send as X-API-Key; DISTILLERY_API_KEY keeps it out of the process list"
        ),
    ] = None


class LimitOptions(Command):
    """What one request, and all of a process together, may take."""

    group: ClassVar[str] = "limit"

    max_images: Annotated[Positive, Field(description="maximum images per request")] = 256
    max_pixels: Annotated[
        Positive, Field(description="maximum pixels of all PNG and JPEG files in a request together")
    ] = 4_000_000
    max_body_bytes: Annotated[
        Positive, Field(description="maximum bytes of a request's body, also after decompression")
    ] = 4 * 1024 * 1024
    max_in_flight: Annotated[
        Positive, Field(description="maximum requests in flight per API process; more get status 503")
    ] = 1024
    request_timeout: Annotated[
        float,
        Field(gt=0, le=3600, description="time limit of a request, from its headers to its response"),
    ] = 5.0


class ProcessOptions(Command):
    """Which processes the service consists of."""

    group: ClassVar[str] = "process"

    api_servers: Annotated[
        Positive, Field(default_factory=usable_cores, description="API processes (default: one per core)")
    ]
    executor: Annotated[
        Literal["inprocess", "workers"],
        Field(description="where models run: in the API processes, or in LitServe's workers"),
    ] = "inprocess"
    workers_per_model: Annotated[
        Positive, Field(description="workers of each model, with --executor workers")
    ] = 1
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="least severity that is logged")
    ] = "warning"


class ServiceSettings(ModelOptions, NetworkOptions, LimitOptions, ProcessOptions):
    """All settings of the service."""
