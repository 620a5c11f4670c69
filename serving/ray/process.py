"""A service as the child process of an actor; it drains when the actor ends, however that ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection

from distillery import DistilleryError
from serving.calls import CallError
from serving.config import ServiceSettings
from serving.health import check_ready
from serving.processes.sockets import ServiceError, free_address

START_SECONDS = 60.0
"""For the port to be free and the service to be ready."""
_POLL_SECONDS = 0.1


class ServiceProcess:
    """`distillery-serve` in a session of its own, without ray."""

    def __init__(self, settings: ServiceSettings) -> None:
        """Start it and wait until it is ready. Raises `ServiceError`."""
        self._settings = settings
        self._patience = settings.shutdown_delay + settings.request_timeout + 5.0
        self._wait_for_port()
        self._line, line = multiprocessing.Pipe()
        with line:
            command = [sys.executable, "-m", "serving.ray.process", str(line.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[line.fileno()], start_new_session=True)
        self._line.send(settings)
        try:
            self._wait_until_ready()
        except ServiceError:
            self.stop()
            raise

    def check(self) -> None:
        """Raises `ServiceError` or `CallError` unless it runs and is ready."""
        if (status := self._process.poll()) is not None:
            with suppress(EOFError, OSError):
                if self._line.poll():
                    raise ServiceError(self._line.recv())
            raise ServiceError(f"the service ended with status {status}; the log of its node says why")
        key = self._settings.api_key.get_secret_value() if self._settings.api_key else None
        check_ready(f"http://127.0.0.1:{self._settings.port}", timeout=2.0, api_key=key)

    def stop(self) -> None:
        """Let it drain and end, by SIGTERM; kill what is left of it."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(self._patience)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._line.close()

    def _wait_for_port(self) -> None:
        """Wait for the end of a service that drains, because its actor was killed."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                free_address(self._settings.host, self._settings.port, "port")
            except ServiceError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)
            else:
                return

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.check()
            except CallError as error:
                if time.monotonic() > deadline:
                    raise ServiceError(f"not ready within {START_SECONDS:g} s: {error}") from None
                time.sleep(_POLL_SECONDS)
            else:
                return


def _main() -> None:
    line = Connection(int(sys.argv[1]))
    settings: ServiceSettings = line.recv()

    def end_with_actor() -> None:
        with suppress(EOFError, OSError):
            line.recv()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_actor, name="end-with-actor", daemon=True).start()
    try:
        settings.run()
    except DistilleryError as error:
        line.send(str(error))
        sys.exit(f"distillery-serve: {error}")


if __name__ == "__main__":
    _main()
