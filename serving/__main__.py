"""`python -m serving`, installed as `distillery-serve`."""

import os
import sys
import tempfile
from collections.abc import Sequence
from typing import ClassVar

import distillery
from serving.config import ServiceSettings


class Serve(ServiceSettings):
    """Serve predictions of every model in a repository over HTTP and gRPC.

    Small models run inside the API processes; --executor workers runs them in processes of their own.
    """

    examples: ClassVar[Sequence[str]] = (
        "distillery-serve --models-dir models --port 8000",
        "distillery-serve --host 0.0.0.0 --grpc-port 8001 --default-model teacher",
        "DISTILLERY_API_KEY=secret distillery-serve --api-servers 4 --max-in-flight 256",
    )

    def run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="distillery-metrics-") as folder:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # read when prometheus_client is imported
            from serving.service import serve  # noqa: PLC0415

            serve(self)


COMMANDS: dict[str, type[distillery.Command]] = {"serve": Serve}


def run() -> None:
    """Run the command named on the command line."""
    sys.exit(distillery.main("distillery-serve", COMMANDS, default="serve"))


if __name__ == "__main__":
    run()
