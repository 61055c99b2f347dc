"""The HTTP server: uvicorn in the daemon's own loop, on a socket of ours."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import uvicorn
from connectrpc.code import Code

from billaged.doors.connect import error_response
from billaged.doors.listening import HTTP_ADDRESS, HTTP_PORT, is_loopback, open_socket
from billaged.model.errors import StartError
from billaged.settings import Http, Tls
from billaged.web.protocol import GuardedProtocol

# Requests at once, watchers among them: each may hold one largest message and its decoded form.
REQUESTS_MAX: Final = 256
_KEEP_ALIVE_SECONDS: Final = 15
_POLL_SECONDS: Final = 0.01
_LAST_SECONDS: Final = 1.0


def check_plaintext(tls: Tls, http: Http) -> None:
    """HTTP has no TLS of its own: where gRPC must be secured, it stays on this machine.

    Raises:
        StartError: it would take usage in plaintext from other machines.
    """
    if tls.mode != "disabled" and not is_loopback(http.address):
        raise StartError(
            f"{HTTP_ADDRESS}={http.address}: HTTP would take usage in plaintext from other machines, while "
            f"UNKEY_BILLAGED_TLS_MODE={tls.mode} asks for TLS.",
            f"Set {HTTP_ADDRESS} to 127.0.0.1 (a proxy on this machine can add TLS and authentication).",
        )


class _Server(uvicorn.Server):
    """Without signal handlers: the daemon has its own."""

    async def serve_here(self, sockets: list[Any]) -> None:
        await self._serve(sockets)


class HttpServer:
    """Serves an ASGI application. Started once, stopped once."""

    def __init__(self, app: Any, settings: Http) -> None:
        self._app = app
        self._settings = settings
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen and serve; returns the port.

        Raises:
            StartError: the port cannot be had.
        """
        listening = open_socket(self._settings.address, self._settings.port, HTTP_PORT, HTTP_ADDRESS)
        port: int = listening.getsockname()[1]
        config = uvicorn.Config(
            self._limited,
            interface="asgi3",
            http=GuardedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve_here([listening]), name="billaged-http")
        while not self._server.started:
            if self._serving.done():
                await self._serving
                raise StartError("the HTTP server has ended while starting")
            await asyncio.sleep(_POLL_SECONDS)
        return port

    async def stop(self, grace_seconds: float) -> None:
        """Take nothing new, let running requests finish within the grace, then cut them off."""
        if self._server is None or self._serving is None:
            return
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_seconds))
        self._server.should_exit = True
        # Those it cuts off now are cut off on purpose: no error, and no traceback each.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await self._serving
        # uvicorn leaves here whoever did not finish in time.
        state = self._server.server_state
        for connection in list(state.connections):
            connection.transport.abort()
        if state.tasks:
            await asyncio.wait(list(state.tasks), timeout=_LAST_SECONDS)

    async def _limited(self, scope: Any, receive: Any, send: Any) -> None:
        # Who looks after the daemon asks for its health just when it is full.
        running = 0 if self._server is None else len(self._server.server_state.tasks)
        if running > REQUESTS_MAX and scope["path"] != "/health":
            message = f"{REQUESTS_MAX} requests are being answered already"
            await error_response(503, Code.UNAVAILABLE, message, {"Retry-After": "1"})(scope, receive, send)
        else:
            await self._app(scope, receive, send)
