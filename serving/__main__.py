"""`distillery-serve`: `python -m serving --models-dir models --port 8000`."""

# ruff: noqa: E402
import signal
import sys

# Before the other imports: the first process of a container ignores a signal without a handler.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

import distillery
from serving.config import ServiceSettings


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


COMMANDS: dict[str, type[distillery.Command]] = {"serve": Serve}


def run() -> None:
    """Run the command named on the command line."""
    sys.exit(distillery.main("distillery-serve", COMMANDS, default="serve"))


if __name__ == "__main__":
    run()
