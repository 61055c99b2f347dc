"""What /health answers, on every port that has it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import billaged

State = Literal["starting", "ok", "expired", "stopping"]

# What is shown is of this moment: no cache between may keep it.
FRESH: Final = {"Cache-Control": "no-store"}


def health_route(state: Callable[[], State], monotonic_seconds: Callable[[], float] = time.monotonic) -> Route:
    """``state`` is what is said ("ok" answers 200, else 503); the time that is up counts from now."""
    started_seconds = monotonic_seconds()

    async def health(request: Request) -> Response:
        now = state()
        body = {
            "status": now,
            "service": "billaged",
            "version": billaged.__version__,
            "uptime_seconds": round(monotonic_seconds() - started_seconds, 3),
        }
        return JSONResponse(body, 200 if now == "ok" else 503, FRESH)

    return Route("/health", health, methods=["GET"])
