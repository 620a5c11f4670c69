"""`X-Request-ID` and the access log of everything but predictions, for which `serving.engine.request` does both."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.engine.admission.admission import Admission
from serving.engine.telemetry.access_log import MAX_PATH
from serving.engine.telemetry.correlation import REQUEST_ID, Correlation, new_request_id


class RequestIds:
    """Adds the id of a request to the response of `app`, and logs the request."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Correlation.of(dict(scope["headers"])).request_id or new_request_id()
        began, status = time.monotonic(), 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (REQUEST_ID, request_id)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if log := self._admission.access_log:
                seconds = time.monotonic() - began
                log.add(request_id, status, seconds, method=scope["method"], path=scope["path"][:MAX_PATH])
