"""Environment variables that Kubernetes sets for a Service whose name begins like our variables.

A Service `distillery` sets `DISTILLERY_PORT=tcp://10.0.0.1:8000` in every pod of its namespace, a Service
`distillery-grpc` sets `DISTILLERY_GRPC_PORT=tcp://…`; links of Docker containers do the same. They are no settings.
https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
"""

import os
import re
from collections.abc import Iterable, Mapping

_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://\S+:\d+", re.IGNORECASE)


def without_service_links(variables: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return the variables that are no service links."""
    return {name: value for name, value in variables.items() if not _is_service_link(name, value)}


def ignored_service_links(settings: Iterable[str]) -> str | None:
    """Return a notice of the service links whose names are those of settings, None without any."""
    names = {f"DISTILLERY_{setting.upper()}" for setting in settings}
    found = [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name.upper() in names and _is_service_link(name, value)
    ]
    if not found:
        return None
    return (
        f"ignored {', '.join(found)}: set by Kubernetes for a Service of this name; "
        "enableServiceLinks: false in the pod's spec prevents it"
    )


def _is_service_link(name: str, value: str | None) -> bool:
    return name.upper().endswith("_PORT") and bool(_ADDRESS.fullmatch(value or ""))
