"""A load generator: unary gRPC calls over plain HTTP/2, as many as one core can send.

gRPC's own Python client spends more on a call than the server under test, so it would
measure itself. Here each call's two frames are made before the clock starts, and of the
answers only the frames' headers are read, and the status in the trailers. Header
compression is switched off (a table of size 0), so that a trailer is plain bytes.
"""

from __future__ import annotations

import asyncio
import gc
import struct
import time
from array import array
from collections.abc import Sequence
from typing import NamedTuple, cast

import uvloop

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_HEADER_BYTES = 9
_HEADER_TABLE_SIZE, _INITIAL_WINDOW_SIZE = 1, 4
_WINDOW_BYTES = 65_535  # what a peer may send before the first update, of its own or of ours
_LARGEST_WINDOW = 2**31 - 1
_OK = b"\x0bgrpc-status\x010"
_DEADLINE_SECONDS = 60.0


class LoadResult(NamedTuple):
    """``latencies`` in seconds, one an answer: from when the call was due (or sent) to the answer's end.

    ``failed`` calls ended with another status than 0; ``why`` is the trailer of one.
    ``busy`` is how much of one core the generator itself took.
    """

    calls: int
    failed: int
    why: bytes
    seconds: float
    latencies: list[float]
    busy: float

    @property
    def per_second(self) -> float:
        return (self.calls - self.failed) / self.seconds


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _text(value: str) -> bytes:
    """A string of a header block, not compressed; shorter than 127 bytes."""
    return bytes([len(value)]) + value.encode()


def _header_block(path: str) -> bytes:
    # By RFC 7541's static table: POST, http, :path, :authority, content-type; te has no place in it.
    return b"".join(
        (
            b"\x83\x86",
            b"\x04" + _text(path),
            b"\x01" + _text("127.0.0.1"),
            b"\x0f\x10" + _text("application/grpc"),
            b"\x00" + _text("te") + _text("trailers"),
        )
    )


class Connection(asyncio.Protocol):
    """Sends its calls in order, each as a stream of its own; ``sent`` and ``ended`` hold their times."""

    def __init__(self, path: str, payloads: Sequence[bytes], *, refill: bool) -> None:
        """``refill``: each answer is followed by the next call at once."""
        block = _header_block(path)
        self._frames = [
            _frame(_HEADERS, _END_HEADERS, 2 * nth + 1, block)
            + _frame(_DATA, _END_STREAM, 2 * nth + 1, struct.pack(">BI", 0, len(payload)) + payload)
            for nth, payload in enumerate(payloads)
        ]
        self._data_bytes = max(map(len, payloads)) + 5
        self._refill = refill
        self._window = _WINDOW_BYTES
        self._rest = b""
        self._next = 0
        self._open = 0
        # Calls that ended with another status than 0, and the trailer of the last.
        self.failed = 0
        self.why = b""
        self.sent = array("d", bytes(8 * len(payloads)))
        self.ended = array("d", bytes(8 * len(payloads)))
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's by class.
        self._transport = cast(asyncio.Transport, transport)
        settings = struct.pack(">HIHI", _HEADER_TABLE_SIZE, 0, _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)
        window = struct.pack(">I", _LARGEST_WINDOW - _WINDOW_BYTES)
        self._transport.write(_PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW_UPDATE, 0, 0, window))

    def send(self, calls: int) -> None:
        """Send so many of the calls that are left."""
        first, self._next = self._next, min(self._next + calls, len(self._frames))
        self._open += self._next - first
        # A bound from above; what is in flight stays far below a window.
        self._window -= (self._next - first) * self._data_bytes
        if self._window < 0:
            self._fail("the server reads too little: its window is used up")
            return
        now = time.perf_counter()
        for nth in range(first, self._next):
            self.sent[nth] = now
        self._transport.write(b"".join(self._frames[first : self._next]))

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._rest:
            data = self._rest + data
        at, size, ended = 0, len(data), 0
        while size - at >= _HEADER_BYTES:
            end = at + _HEADER_BYTES + int.from_bytes(data[at : at + 3], "big")
            if end > size:
                break
            kind, flags = data[at + 3], data[at + 4]
            if kind == _HEADERS:
                if flags & _END_STREAM:
                    if data.find(_OK, at, end) < 0:
                        self.failed += 1
                        self.why = data[at + _HEADER_BYTES : end]
                    self.ended[int.from_bytes(data[at + 5 : at + 9], "big") >> 1] = now
                    ended += 1
            elif kind != _DATA:
                self._control(kind, flags, data[at + _HEADER_BYTES : end], of_connection=not any(data[at + 5 : at + 9]))
            at = end
        self._rest = data[at:]
        if ended:
            self._open -= ended
            if self._refill and self._next < len(self._frames):
                self.send(ended)
            elif not self._open and self._next == len(self._frames) and not self.done.done():
                self.done.set_result(None)

    def _control(self, kind: int, flags: int, payload: bytes, *, of_connection: bool) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            self._transport.write(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._transport.write(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW_UPDATE and of_connection:
            self._window += int.from_bytes(payload, "big")
        elif kind == _RESET and not any(payload):
            return  # no error: an answer came before its request was read to the end, and counts as it is
        elif kind in (_RESET, _GOAWAY):
            self._fail(f"the server ended the {'connection' if kind == _GOAWAY else 'stream'}: {payload!r}")

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"the connection was lost: {error}")

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(why))

    def close(self) -> None:
        self._transport.close()


def closed_loop(port: int, path: str, payloads: Sequence[Sequence[bytes]], streams: int) -> LoadResult:
    """Calls on one connection for each list of payloads, ``streams`` in flight on each, the next when one ends.

    Raises:
        RuntimeError: a connection failed, or more than one call in a hundred.
    """
    return _run(port, path, payloads, streams, None)


def open_loop(port: int, path: str, payloads: Sequence[Sequence[bytes]], per_second: float) -> LoadResult:
    """Calls at a steady rate whatever the answers do; latencies count from when each was due.

    Raises:
        RuntimeError: a connection failed, or more than one call in a hundred.
    """
    return _run(port, path, payloads, 0, per_second)


def _run(
    port: int, path: str, payloads: Sequence[Sequence[bytes]], streams: int, per_second: float | None
) -> LoadResult:
    async def run() -> LoadResult:
        loop = asyncio.get_running_loop()
        connections = [
            (await loop.create_connection(lambda: Connection(path, mine, refill=not per_second), "127.0.0.1", port))[1]  # noqa: B023
            for mine in payloads
        ]
        async with asyncio.timeout(_DEADLINE_SECONDS):
            began, cpu_began = time.perf_counter(), time.process_time()
            if per_second:
                await _pace(connections, per_second, began, len(payloads[0]))
            else:
                for connection in connections:
                    connection.send(streams)
            await asyncio.gather(*(connection.done for connection in connections))
        cpu_seconds = time.process_time() - cpu_began
        for connection in connections:
            connection.close()
        calls = sum(map(len, payloads))
        failed = sum(connection.failed for connection in connections)
        why = max(connection.why for connection in connections)
        if failed * 100 > calls:
            raise RuntimeError(f"{failed} of {calls} calls were not answered with status 0: {why!r}")
        seconds = max(max(connection.ended) for connection in connections) - began
        latencies = [
            ended - (began + (nth * len(connections) + index) / per_second if per_second else sent)
            for index, connection in enumerate(connections)
            for nth, (sent, ended) in enumerate(zip(connection.sent, connection.ended, strict=True))
        ]
        return LoadResult(calls, failed, why, seconds, latencies, cpu_seconds / seconds)

    gc.collect()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run())
    finally:
        gc.enable()


async def _pace(connections: Sequence[Connection], per_second: float, began: float, each: int) -> None:
    """Send what has come due about every millisecond, the connections in turn."""
    total, sent = each * len(connections), 0
    while sent < total:
        due = min(total, int((time.perf_counter() - began) * per_second) + 1)
        for nth in range(sent, due):
            connections[nth % len(connections)].send(1)
        sent = due
        await asyncio.sleep(0.001)
