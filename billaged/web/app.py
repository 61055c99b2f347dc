"""The HTTP application. Every answer of it is JSON, errors too."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from connectrpc.code import Code
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from billaged.doors.connect import Admit, ConnectDoor, denied_response, error_response
from billaged.doors.status import refusal
from billaged.model.errors import Forbidden, Overloaded, RequestError, Unauthenticated
from billaged.web.health import FRESH, State, health_route

_CODES: Final = {404: Code.NOT_FOUND, 405: Code.UNIMPLEMENTED}


def http_app(
    door: ConnectDoor,
    state: Callable[[], State],
    stats: Callable[[], Mapping[str, Any]],
    admit: Admit,
    *,
    monotonic_seconds: Callable[[], float] = time.monotonic,
) -> Starlette:
    """The application around the Connect door.

    ``state`` is what /health says ("ok" answers 200, else 503). ``stats`` is called in
    a thread, for it may wait for a lock, and gives what json can write. ``admit`` is the gate: only
    /health is open to all.
    """

    async def statistics(request: Request) -> Response:
        try:
            admit("GET /stats", request.scope)
            body = dict(await asyncio.to_thread(stats))
        except (Unauthenticated, Forbidden) as error:
            return denied_response(error)
        except RequestError as error:
            told = refusal(error)
            seconds = math.ceil(error.retry_after_seconds or 1)
            status = 429 if isinstance(error, Overloaded) else 503
            return error_response(status, told.connect_code, told.message, {"Retry-After": str(seconds)})
        except Exception as error:  # noqa: BLE001 - a bug there is logged, and told by its reference only
            return await _unexpected(request, error)
        return JSONResponse(body, headers=FRESH)

    app = Starlette(
        routes=[
            health_route(state, monotonic_seconds),
            Route("/stats", statistics, methods=["GET"]),
            *(Mount(prefix, door) for prefix in door.prefixes),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _unexpected},
    )
    # A redirect would drop the body of a POST in many clients.
    app.router.redirect_slashes = False
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return await _unexpected(request, error)
    code = _CODES.get(error.status_code, Code.UNKNOWN)
    path = request.url.path
    message = f"nothing at {path}" if error.status_code == 404 else f"{request.method} {path}: {error.detail}"
    return error_response(error.status_code, code, message, dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> Response:
    told = refusal(error)
    return error_response(500, told.connect_code, told.message)
