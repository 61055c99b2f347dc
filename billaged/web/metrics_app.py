"""The application behind the port for Prometheus: /metrics and /health, for everybody who can connect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from billaged.doors.connect import CUT_EXTENSION
from billaged.telemetry.metrics.exposition import Exposition, ScrapeTooSlow
from billaged.web.health import FRESH, State, health_route

_log: Final = logging.getLogger("billaged.web")

# Connections at once: a few for Prometheus, and for who looks by hand.
CONNECTIONS_MAX: Final = 16
# So long after its request a connection is cut, whether or not all has been read.
_ANSWER_SECONDS: Final = 20.0


class MetricsApp:
    """An ASGI application: each connection serves one request and ends, in time or cut off."""

    def __init__(
        self, exposition: Exposition, state: Callable[[], State], answer_seconds: float = _ANSWER_SECONDS
    ) -> None:
        self._exposition = exposition
        self._answer_seconds = answer_seconds
        self._app = Starlette(
            routes=[Route("/metrics", self._metrics, methods=["GET"]), health_route(state)],
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        cut = scope.get("extensions", {}).get(CUT_EXTENSION, {}).get("cut")
        if cut is not None:
            asyncio.get_running_loop().call_later(self._answer_seconds, cut)

        async def send_last(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, send_last)

    async def _metrics(self, request: Request) -> Response:
        try:
            scrape = await self._exposition.scrape(request.headers.get("accept", ""))
        except ScrapeTooSlow as error:
            return PlainTextResponse(f"{error}\n", 503, {"Retry-After": "1", **FRESH})
        except Exception as error:  # noqa: BLE001 - a bug there is logged, and the scrape has failed
            _log.error("the metrics could not be read", exc_info=error)
            return PlainTextResponse("the metrics could not be read; the log says why\n", 500)
        return Response(scrape.body, 200, {"Content-Type": scrape.content_type, **FRESH})
