"""Settings of the service; the command that takes them is in `serving.__main__`."""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, PositiveInt, SecretStr, field_validator, model_validator

from distillery import Command, Metavar, unknown
from distillery.machine import usable_cores


def _valid_key(key: object) -> object:
    """Return the key as a header carries it, without the line break that ends a file of secrets.

    The messages do not contain the key. Raises `ValueError`.
    """
    if key is None or isinstance(key, SecretStr):  # the default, or checked already
        return key
    if not isinstance(key, str):
        raise ValueError("must be a string; put the key in quotes")
    key = key.strip()  # HTTP removes whitespace around the value of a header
    if not key:
        raise ValueError(
            "is empty: is a secret missing? Set DISTILLERY_API_KEY to the key, or unset it to serve without one"
        )
    if not (key.isascii() and key.isprintable()):
        raise ValueError("contains a character that no header can carry; use printable ASCII characters")
    return key


ApiKey = Annotated[SecretStr | None, BeforeValidator(_valid_key), Metavar("KEY")]
ROUTES = ("health", "docs", "metrics", "models")
"""That may be open to everyone."""


MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_PIXELS = 16_000_000
"""Defaults, which `serving.scoring` shares."""


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
        default_factory=usable_cores, description="API processes; default: one per usable core"
    )
    fast_path: bool = Field(
        True, description="serve the repeated requests of a connection without uvicorn's parser"
    )
    page: bool = Field(True, description="serve the web page at /; without it, / redirects to /docs")
    tls_cert: Annotated[Path | None, Metavar("FILE")] = Field(
        None,
        description="serve HTTPS, and gRPC with TLS, with this certificate and its chain (PEM); read again when it "
        "changes",
    )
    tls_key: Annotated[Path | None, Metavar("FILE")] = Field(
        None, description="private key of --tls-cert (PEM, not encrypted)"
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

    @model_validator(mode="after")
    def _certificate(self) -> Self:
        from serving.processes.tls import CertificateError, Pem  # noqa: PLC0415 - most services have none

        if self.tls_cert and self.tls_key:
            try:
                Pem.read(self.tls_cert, self.tls_key)
            except CertificateError as error:
                raise ValueError(str(error)) from None
        elif self.tls_cert or self.tls_key:
            found, missing = ("--tls-cert", "--tls-key") if self.tls_cert else ("--tls-key", "--tls-cert")
            raise ValueError(f"{found} needs {missing} as well; one file may hold both")
        return self


class ConnectionSettings(Command):
    """Connections, and what stands between the service and its clients."""

    group = "connection"

    keep_alive: Annotated[float, Metavar("SECONDS")] = Field(
        75.0, gt=0, le=86400, description="close a connection that has been idle for this time"
    )
    client_timeout: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="maximum time for the head of a request to arrive, and in which a body must make progress and a "
        "response be read: 16 KiB per second",
    )
    root_path: Annotated[str, Metavar("PATH")] = Field(
        "", description="path prefix under which a proxy publishes the service, such as /digits"
    )
    trusted_proxies: Annotated[list[str], Metavar("ADDRESS,...")] = Field(
        [], description="addresses or networks of proxies whose X-Forwarded-* headers count; *: of anyone"
    )
    cors_origins: Annotated[list[str], Metavar("ORIGIN,...")] = Field(
        [], description="origins whose pages may use the service, such as https://example.org; *: all of them"
    )

    @field_validator("root_path")
    @classmethod
    def _prefix(cls, value: str) -> str:
        from serving.http.middleware.normalise import PREFIX  # noqa: PLC0415 - --help does without starlette

        value = value.rstrip("/")
        if not PREFIX.fullmatch(value):
            raise ValueError(f"{value!r} is not a path prefix such as /digits")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, values: list[str]) -> list[str]:
        for value in values:
            try:
                if value != "*":
                    ipaddress.ip_network(value)
            except ValueError as error:
                raise ValueError(f"{error}; expected addresses or networks such as 10.0.0.0/8") from None
        return ["*"] if "*" in values else values

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, values: list[str]) -> list[str]:
        for value in values:
            parts = urlsplit(value)
            complete = parts.scheme and parts.netloc
            default_port = {"http": ":80", "https": ":443"}.get(parts.scheme, "/")
            origin = f"{parts.scheme}://{parts.netloc.lower().removesuffix(default_port)}"
            if value != "*" and (not complete or value != origin):
                advice = f"use {origin}" if complete else "expected one such as https://example.org"
                raise ValueError(f"{value!r} is not an origin as browsers send it; {advice}")
        return values


class InferenceSettings(Command):
    """Where and how models run."""

    group = "inference"

    executor: Literal["inprocess", "workers"] = Field(
        "inprocess", description="run models in the API processes, or in LitServe's worker processes"
    )
    workers_per_model: PositiveInt = Field(
        1, description="worker processes per model, with --executor workers"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "cpu", description="device to run models on; cuda needs onnxruntime-gpu; auto: CUDA if it works"
    )
    threads: PositiveInt = Field(1, description="CPU threads per inference run")
    max_batch: PositiveInt = Field(64, description="maximum images per batch")
    agreement_samples: Annotated[float, Metavar("N")] = Field(
        1.0,
        ge=0,
        le=10,
        description="images per second, model and API process that the teacher classifies as well, to count how often "
        "they agree; needs a model named teacher and --executor inprocess; 0: none",
    )
    reject_unaccepted: bool = Field(
        False,
        description="respond with status 422 if the confidence in a prediction is below the model's threshold",
    )


class AccessSettings(Command):
    """Who may use the service."""

    group = "access"

    api_key: ApiKey = Field(
        None,
        description="key that prediction requests must send in the header X-API-Key; set DISTILLERY_API_KEY rather "
        "than this option, which other users of the machine can see; whitespace around it is removed",
    )
    api_keys: Annotated[Path | None, Metavar("FILE")] = Field(
        None,
        description="TOML file with the hashes of several keys, their scopes and rates, which is read again when it "
        "changes; distillery-serve key makes its entries",
    )
    open_routes: Annotated[list[str], Metavar("ROUTES")] = Field(
        ["health", "docs", "metrics"],
        description=f"routes that need no key, of {', '.join(ROUTES)}; predictions always need one",
    )

    @field_validator("open_routes")
    @classmethod
    def _known_routes(cls, values: list[str]) -> list[str]:
        for value in values:
            if value not in ROUTES:
                raise ValueError(unknown("route", value, ROUTES))
        return values


class LimitSettings(Command):
    """Limits of a request."""

    group = "limit"

    max_body_bytes: PositiveInt = Field(MAX_BODY_BYTES, description="maximum size of a request body")
    max_images: PositiveInt = Field(256, description="maximum images per request")
    max_pixels: PositiveInt = Field(
        MAX_PIXELS, description="maximum pixels that decoding the pictures of a request may hold in memory"
    )
    max_in_flight: PositiveInt = Field(
        1024, description="maximum requests in flight per API process; further ones get status 503"
    )
    request_timeout: float = Field(
        5.0, gt=0, le=3600, description="maximum time to compute the response to a complete request"
    )


class TelemetrySettings(Command):
    """What is written about single requests."""

    group = "telemetry"

    access_log: Literal["json"] | None = Field(
        None, description="write one line of JSON per request to standard output"
    )
    access_log_sample: float = Field(
        1.0, gt=0, le=1, description="share of the successful requests that are logged; all others are"
    )
    access_log_rate: PositiveInt = Field(
        100, description="maximum lines of the access log per second and API process"
    )
    tracing: bool = Field(
        False,
        description="send a span per request to an OpenTelemetry collector, as the variables OTEL_* describe (extra "
        "tracing)",
    )


class FeedbackSettings(Command):
    """True digits that clients send."""

    group = "feedback"

    feedback: bool = Field(
        True,
        description="count the accuracy of each model by the true digits that clients send to POST /feedback",
    )
    feedback_expiry: Annotated[float, Metavar("SECONDS")] = Field(
        3600.0, gt=0, le=86400, description="how long the id of a request is known"
    )
    feedback_requests: int = Field(
        65536,
        ge=1024,
        le=1 << 24,
        description="how many of its latest requests an API process knows: 60 bytes of memory for each",
    )


class RequestLogSettings(Command):
    """A sample of the images that are classified, for training and benchmarks."""

    group = "request log"

    request_log: Annotated[Path | None, Metavar("DIR")] = Field(
        None,
        description="log images and predictions of a sample of the requests to Parquet files in this folder (extra "
        "scoring); unaccepted predictions, and those that the teacher contradicts, always",
    )
    request_log_sample: float = Field(0.01, ge=0, le=1, description="share of the requests that is logged")
    request_log_rate: PositiveInt = Field(
        100, le=10_000, description="maximum images logged per second and API process"
    )
    request_log_bytes: int = Field(
        1 << 30, ge=1 << 20, description="maximum size of the folder; the oldest files are removed"
    )
    request_log_seconds: float = Field(
        60.0, ge=0.1, le=3600, description="time after which logged images are written to a file"
    )


class RepositorySettings(Command):
    """The model repository."""

    models_dir: Path = Field(Path("models"), description="model repository, as distillery-export writes it")
    public_key: Annotated[Path | None, Metavar("FILE")] = Field(
        None,
        description="PEM file with Ed25519 public keys, one of which must have signed each model (extra signed)",
    )
    watch: bool = Field(
        False,
        description="look for changes of the repository every second, and load them; without it, SIGHUP or a request "
        "of an administrator does; needs --executor inprocess",
    )


class ServiceSettings(
    RepositorySettings,
    ListenSettings,
    ConnectionSettings,
    InferenceSettings,
    AccessSettings,
    LimitSettings,
    TelemetrySettings,
    FeedbackSettings,
    RequestLogSettings,
):
    """All settings of the service."""

    default_model: str | None = Field(
        None,
        description="model that answers POST /predict, unless the repository has a release.json; default: fast-int8, "
        "student-int8, student or the first",
    )

    @model_validator(mode="after")
    def _models_change(self) -> Self:
        if self.watch and self.executor == "workers":
            raise ValueError("--watch needs --executor inprocess: workers keep the models of their start")
        return self
