"""The limit of open files: every connection is one."""

import resource
from contextlib import suppress

from serving.processes.sockets import ServiceError

ENOUGH = 65_536
"""Connections of one process; higher limits gain nothing."""
_NEEDED = 64
_NEEDED_PER_PROCESS = 4


def raise_file_limit(api_servers: int) -> None:
    """Raise the soft limit of open files as far as the hard one allows. Raises `ServiceError` if that is too low.

    Shells and service managers start programs with a soft limit of 1,024, for those that use `select`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(ENOUGH, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # macOS has a lower limit than it states
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    needed = _NEEDED + _NEEDED_PER_PROCESS * api_servers
    if soft != resource.RLIM_INFINITY and soft < needed:
        raise ServiceError(
            f"only {soft} files may be open, and {api_servers} API processes need {needed}, more with every "
            "connection: raise the limit to 1024 or more with ulimit -n, LimitNOFILE= or docker run --ulimit nofile"
        )
