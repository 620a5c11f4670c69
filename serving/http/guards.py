"""The API key and scope that FastAPI's routes need; `serving.http.prediction_routes` protects predictions itself."""

from collections.abc import Collection
from typing import Annotated, Any

from fastapi import Depends
from fastapi.security import APIKeyHeader

from serving.engine.admission.api_keys import Access, Scope

KEY_STATUSES = (401, 403, 429)
"""Of the errors of a route that needs a key."""
_api_key_header = APIKeyHeader(name="X-API-Key", auto_error=False)

Guard = dict[str, Any]
"""The arguments of a route: empty, or those that require a key."""


class Guards:
    """The guard of each group of routes."""

    def __init__(self, access: Access, open_routes: Collection[str]) -> None:
        def guard(routes: str, scope: Scope | None) -> Guard:
            return {} if routes in open_routes or not access.required else _require(access, scope)

        self.models = guard("models", "infer")
        self.infer = _require(access, "infer") if access.required else {}
        """As of predictions, which `open_routes` does not open."""
        self.docs = guard("docs", "infer")
        self.metrics = guard("metrics", "metrics")
        self.health = guard("health", None)
        self.admin = _require_admin(access)
        """Of changes to what is served: closed without a key."""


def _require_admin(access: Access) -> Guard:
    async def authorise(key: Annotated[str | None, Depends(_api_key_header)]) -> None:
        access.check_admin((key or "").encode("latin-1"))

    return {"dependencies": [Depends(authorise)]}


def _require(access: Access, scope: Scope | None) -> Guard:
    async def authorise(key: Annotated[str | None, Depends(_api_key_header)]) -> None:
        access.check((key or "").encode("latin-1"), scope)

    return {"dependencies": [Depends(authorise)]}
