"""Properties of the machine that several packages need."""

import os


def usable_cores() -> int:
    """Return the number of CPU cores this process may use, which in a container is below the machine's.

    Where the operating system has no affinity (macOS), it is the machine's.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
