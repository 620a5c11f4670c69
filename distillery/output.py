"""Lines on standard output that no reader may wait for."""

import os
import sys
from contextlib import suppress


def notify(line: str) -> None:
    """Print a line for the operator of a service, which a full disk or a reader that has gone must not end."""
    with suppress(OSError):
        sys.stdout.flush()  # after what was printed before
        os.write(sys.stdout.fileno(), f"{line}\n".encode())
