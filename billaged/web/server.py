"""The HTTP server: uvicorn in the daemon's own loop, on a socket of ours, with TLS that follows the keeper."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

import uvicorn
from connectrpc.code import Code

from billaged.doors.connect import error_response
from billaged.doors.listening import HTTP_ADDRESS, HTTP_PORT, open_socket
from billaged.identity.http_tls import ServerTls
from billaged.identity.keeper import Keeper
from billaged.model.errors import StartError
from billaged.settings import Http
from billaged.web.acceptor import Acceptor
from billaged.web.protocol import GuardedProtocol

# Requests at once, watchers among them: each may hold one largest message and its decoded form.
REQUESTS_MAX: Final = 256
_KEEP_ALIVE_SECONDS: Final = 15
_POLL_SECONDS: Final = 0.01
_LAST_SECONDS: Final = 1.0


class _Server(uvicorn.Server):
    """Without signal handlers: the daemon has its own. ``tls`` None is plaintext."""

    def __init__(
        self, config: uvicorn.Config, tls: ServerTls | None, handshake_seconds: float, connections_max: int
    ) -> None:
        super().__init__(config)
        self._tls = tls
        self._handshake_seconds = handshake_seconds
        self._connections_max = connections_max

    async def serve_here(self, sockets: list[socket.socket]) -> None:
        await self._serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._tls is None or sockets is None:
            await super().startup(sockets)
            return
        # What uvicorn does with its servers is to close them and to wait until they are.
        self.servers: list[Any] = [
            Acceptor(listening, self._tls, self._connection, self._places, self._handshake_seconds)
            for listening in sockets
        ]
        self.started = True

    def _connection(self, made: Callable[[], None]) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(self.config, self.server_state, app_state={}, made=made)
        return protocol

    def _places(self) -> int:
        return self._connections_max - len(self.server_state.connections)


class Place(NamedTuple):
    """Where a server listens, and the settings that say so."""

    address: str
    port: int
    address_variable: str = HTTP_ADDRESS
    port_variable: str = HTTP_PORT


class HttpServer:
    """Serves an ASGI application. Listens, serves and stops once each."""

    def __init__(
        self,
        app: Any,
        settings: Http,
        keeper: Keeper | None = None,
        handshake_timeout_seconds: float = 10.0,
        connections_max: int | None = None,
        place: Place | None = None,
        *,
        oldest_makes_way: bool = False,
    ) -> None:
        """With a keeper it serves TLS only: a client certificate is asked for where there is trust, but not needed.

        ``connections_max`` is for less than the settings allow, ``place`` for another than theirs. With
        ``oldest_makes_way`` one connection too many is the end of the oldest, without it its own.
        """
        self._app = app
        self._place = Place(settings.address, settings.port) if place is None else place
        self._keeper = keeper
        self._handshake_timeout_seconds = handshake_timeout_seconds
        self._connections_max = settings.max_connections if connections_max is None else connections_max
        self._oldest_makes_way = oldest_makes_way
        self._listening: socket.socket | None = None
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    def listen(self) -> int:
        """Take the port, which it returns; who connects waits for ``start``.

        Raises:
            StartError: the port cannot be had.
        """
        port: int = self._listen().getsockname()[1]
        return port

    async def start(self) -> int:
        """Serve, and listen if that is still to do; returns the port. A keeper must have material by now.

        Raises:
            StartError: the port cannot be had, or TLS does not take the material.
        """
        tls = None if self._keeper is None else ServerTls(self._keeper)
        listening = self._listen()
        port: int = listening.getsockname()[1]
        config = uvicorn.Config(
            self._limited,
            interface="asgi3",
            # Called for each connection, as the class would be.
            http=cast(
                Any,
                functools.partial(
                    GuardedProtocol,
                    connections_max=self._connections_max,
                    oldest_makes_way=self._oldest_makes_way,
                ),
            ),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        self._server = _Server(config, tls, self._handshake_timeout_seconds, self._connections_max)
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
            if self._listening is not None:
                self._listening.close()
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

    def _listen(self) -> socket.socket:
        if self._listening is None:
            address, port, address_variable, port_variable = self._place
            self._listening = open_socket(address, port, port_variable, address_variable)
        return self._listening

    async def _limited(self, scope: Any, receive: Any, send: Any) -> None:
        # Who looks after the daemon asks for its health just when it is full.
        running = 0 if self._server is None else len(self._server.server_state.tasks)
        if running > REQUESTS_MAX and scope["path"] != "/health":
            message = f"{REQUESTS_MAX} requests are being answered already"
            await error_response(503, Code.UNAVAILABLE, message, {"Retry-After": "1"})(scope, receive, send)
        else:
            await self._app(scope, receive, send)
