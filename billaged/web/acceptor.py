"""The acceptor: connections whose TLS handshake is not yet done, few enough and not for long.

uvicorn would leave them to the event loop's own server, which has one context for all and
does not count what is in its handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

from billaged.identity.http_tls import ServerTls

_log: Final = logging.getLogger("billaged.web")

# The loop has others to look after when many come at once: each costs it a quarter of a millisecond.
_ACCEPTED_AT_ONCE: Final = 8
# Out of file descriptors or memory: closing others takes a moment.
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_REST_SECONDS: Final = 1.0
# A connection that is closed waits so long for the other side to agree, as TLS has it.
_FAREWELL_SECONDS: Final = 2.0
_SAY_AGAIN_SECONDS: Final = 10.0


class Acceptor:
    """Accepts from one listening socket, in the loop it is made in. Begins at once, closed once."""

    def __init__(
        self,
        listening: socket.socket,
        tls: ServerTls,
        protocol: Callable[[Callable[[], None]], asyncio.Protocol],
        places: Callable[[], int],
        handshake_seconds: float,
    ) -> None:
        """``protocol`` makes that of a connection, which calls what it is given once the handshake is done.

        ``places`` says how many more connections there may be, those in their handshake included.
        """
        self._listening = listening
        self._tls = tls
        self._protocol = protocol
        self._places = places
        self._handshake_seconds = handshake_seconds
        self._loop = asyncio.get_running_loop()
        self._handshakes: dict[socket.socket, None] = {}  # connections in theirs, the oldest first
        self._tasks: set[asyncio.Task[None]] = set()  # one for each, and for those that end just now
        self._resting: asyncio.TimerHandle | None = None
        self._unsaid = 0  # failures since the last line about one
        self._say_from_seconds = 0.0
        self._resume()

    def close(self) -> None:
        """Accept no more, and drop who is in the handshake."""
        self._pause()
        if self._resting is not None:
            self._resting.cancel()
        for connection in tuple(self._handshakes):
            self._drop(connection)

    async def wait_closed(self) -> None:
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))

    def _resume(self) -> None:
        self._resting = None
        self._loop.add_reader(self._listening.fileno(), self._accept)

    def _pause(self) -> None:
        self._loop.remove_reader(self._listening.fileno())

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                connection, place = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                _log.error("HTTP takes no connections for a moment: %s", error.strerror)
                self._pause()
                self._resting = self._loop.call_later(_REST_SECONDS, self._resume)
                return
            self._begin(connection, str(place[0]))

    def _begin(self, connection: socket.socket, host: str) -> None:
        if self._places() <= len(self._handshakes):
            if not self._handshakes:
                connection.close()
                return
            # A good client's takes milliseconds: the oldest is the least likely to be one.
            self._drop(next(iter(self._handshakes)))
        connection.setblocking(False)
        self._handshakes[connection] = None
        task = self._loop.create_task(self._shake_hands(connection, host))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _drop(self, connection: socket.socket) -> None:
        del self._handshakes[connection]
        # Cancelling would leave the connection open where it has only just begun; an end of input never does.
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    async def _shake_hands(self, connection: socket.socket, host: str) -> None:
        def done() -> None:
            self._handshakes.pop(connection, None)

        try:
            await self._loop.connect_accepted_socket(
                lambda: self._protocol(done),
                connection,
                ssl=self._tls.context(),
                ssl_handshake_timeout=self._handshake_seconds,
                ssl_shutdown_timeout=_FAREWELL_SECONDS,
            )
        except ConnectionResetError:
            _log.debug("a connection was closed in its TLS handshake", extra={"remote": host})
        except (OSError, ValueError) as error:
            # A certificate's names may be such that the library cannot even show them.
            self._tell(host, error)
        finally:
            done()

    def _tell(self, host: str, error: Exception) -> None:
        """For the operator, who wonders why a client does not get in; not once for each who knocks."""
        self._unsaid += 1
        now_seconds = self._loop.time()
        if now_seconds >= self._say_from_seconds:
            about = {"remote": host, "failures": self._unsaid}
            _log.warning("a TLS handshake over HTTP has failed: %s", _reason(error), extra=about)
            self._say_from_seconds, self._unsaid = now_seconds + _SAY_AGAIN_SECONDS, 0


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate does not hold: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return str(error)
