"""`distillery-serve`: `python -m serving --models-dir models --port 8000`."""

# ruff: noqa: E402
import os
import signal
import sys

# Before the other imports: the first process of a container ignores a signal without a handler. Nothing needs
# an orderly end yet, and an exception within the import of a C extension would become an ImportError.
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

from pydantic import Field
from pydantic_settings import SettingsConfigDict

import distillery
from serving.config import ServiceSettings
from serving.health import check_ready, served_url


class Serve(ServiceSettings):
    """Serve predictions of every model in a repository over HTTP and gRPC.

    Models run inside the API processes, or in processes of their own with --executor workers.
    """

    examples = (
        "distillery-serve",
        "distillery-serve --models-dir models-notebook --port 8080 --grpc-port 8081",
        "distillery-serve --host 0.0.0.0 --api-servers 2 --default-model teacher",
    )

    def run(self) -> None:
        from serving.service import serve  # noqa: PLC0415 - `--help` needs no models, LitServe or onnxruntime

        serve(self)


class Health(distillery.Command):
    """Check that the service is ready; the exit status is 0 or 1.

    A container's health check runs this command: it needs neither host nor port.
    """

    # The variables and the file of the service may be those of its health check.
    model_config = SettingsConfigDict(extra="ignore")
    examples = ("distillery-serve health", "distillery-serve health --url http://127.0.0.1:8001")

    url: str | None = Field(
        None, description="address of the service; default: that of the one this user started last"
    )
    timeout: float = Field(5.0, gt=0, description="maximum time for the service to respond")

    def run(self) -> None:
        check_ready(self.url or served_url(), timeout=self.timeout)


COMMANDS: dict[str, type[distillery.Command]] = {"serve": Serve, "health": Health}


def run() -> None:
    """Run the command named on the command line."""
    sys.exit(distillery.main("distillery-serve", COMMANDS, default="serve"))


if __name__ == "__main__":
    run()
