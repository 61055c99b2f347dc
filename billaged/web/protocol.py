"""The HTTP protocol of uvicorn, made safe against who sends for ever or not at all.

uvicorn's own has no limit on headers and no timeout before a request is complete; with
a limit on connections alone, a few idle ones would keep everybody else out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from connectrpc.code import Code
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from billaged.doors.connect import CUT_EXTENSION
from billaged.doors.http_caller import PEER_EXTENSION

_log: Final = logging.getLogger("billaged.web")

# Headers, and whatever else comes without moving the body forward: chunk extensions, trailers.
MAX_HEADER_BYTES: Final = 64 * 1024
REQUEST_SECONDS: Final = 30.0

_DER: Final = 2  # _ssl.ENCODING_DER


def _closing_answer(status: HTTPStatus, code: Code, message: str) -> bytes:
    """A whole response for a request that no application will see."""
    body = json.dumps({"code": code.value, "message": message}).encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


_TOO_LARGE: Final = _closing_answer(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    Code.RESOURCE_EXHAUSTED,
    f"the headers are larger than {MAX_HEADER_BYTES} bytes",
)


class GuardedProtocol(HttpToolsProtocol):
    """One connection. A request must be complete in time, and its headers within the limit."""

    request_seconds = REQUEST_SECONDS

    def __init__(
        self,
        *arguments: Any,
        made: Callable[[], None] = lambda: None,
        connections_max: int,
        oldest_makes_way: bool = False,
        **named: Any,
    ) -> None:
        """``made`` is called when the connection is made; the rest is uvicorn's.

        One connection too many is closed as it comes; with ``oldest_makes_way`` the oldest one is, first of those
        that have not sent a whole request.

        Each open connection is a file descriptor, which the journal and the gRPC server need as
        well. Those in their TLS handshake count too (``web.acceptor``).
        """
        super().__init__(*arguments, **named)
        self._made = made
        self._connections_max = connections_max
        self._oldest_makes_way = oldest_makes_way
        self._since_seconds = self.loop.time()
        self._deadline: asyncio.TimerHandle | None = None  # when the request that is coming in is cut off
        self._header_bytes = 0  # received since the body last moved forward
        self._peer: dict[object, object] | None = None  # the certificate it has shown

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._made()
        if not self._has_place():
            transport.abort()
        else:
            self._peer = _peer(transport)
            self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._header_bytes += len(data)
        super().data_received(data)
        if self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            _log.warning("a request's headers are over %d bytes: connection closed", MAX_HEADER_BYTES)
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            self.transport.write(_closing_answer(HTTPStatus.BAD_REQUEST, Code.INVALID_ARGUMENT, msg))
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        extensions: dict[str, dict[object, object]] = {CUT_EXTENSION: {"cut": self._cut}}
        if self._peer is not None:
            extensions[PEER_EXTENSION] = self._peer
        self.scope["extensions"] = extensions
        self._header_bytes = 0
        if self._deadline is None:
            self._set_deadline()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._header_bytes = 0

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._header_bytes = 0
        self._clear_deadline()

    def _has_place(self) -> bool:
        if not self._oldest_makes_way:
            return len(self.connections) <= self._connections_max
        others: list[Any] = [each for each in self.connections if each is not self and not each.transport.is_closing()]
        if len(others) >= self._connections_max:
            min(others, key=lambda each: (each._deadline is None, each._since_seconds))._cut()
        return True

    def _set_deadline(self) -> None:
        self._deadline = self.loop.call_later(self.request_seconds, self._cut)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cut(self) -> None:
        """Close at once, unsent bytes and all: who does not read would keep them here."""
        if self.cycle is not None:
            self.cycle.disconnected = True
        self.transport.abort()


def _peer(transport: asyncio.BaseTransport) -> dict[object, object] | None:
    """The certificate that the client has shown, and those behind it; None without one, and without TLS."""
    connection: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    if connection is None or connection.getpeercert(binary_form=True) is None:
        return None
    leaf, *chain = _chain(connection)
    return {"leaf": leaf, "chain": b"".join(chain)}


def _chain(connection: ssl.SSLObject) -> list[bytes]:
    """All certificates that the client has sent, PEM, its own first."""
    if sys.version_info >= (3, 13):
        ders = connection.get_unverified_chain()
    else:
        # The same, before it was made public.
        shown = connection._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
        ders = [certificate.public_bytes(_DER) for certificate in shown]
    return [ssl.DER_cert_to_PEM_cert(der).encode("ascii") for der in ders]
