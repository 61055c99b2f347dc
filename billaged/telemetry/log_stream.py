"""The stream that the log goes to: a reader of it that hangs, or has gone, holds up nobody for long."""

from __future__ import annotations

import logging
import os
import select
import time
from typing import Final

# So long a line waits for a reader; then lines are dropped, and the next ones wait for less at first.
_WAIT_SECONDS: Final = 1.0
_WAIT_SHARE: Final = 0.1
# What a pipe or a socket takes without a wait once it can be written to at all.
_CHUNK_BYTES: Final = select.PIPE_BUF
_STDERR: Final = 2


class LogStream(logging.Handler):
    """Writes each line as it comes. How many were dropped is said once one can be written again."""

    def __init__(self, descriptor: int, encoding: str = "utf-8", wait_seconds: float = _WAIT_SECONDS) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._encoding = encoding
        self._wait_seconds = wait_seconds
        # Of a line that was begun: no other may begin within it.
        self._rest = b""
        self._dropped = 0
        self._why = ""
        self._waited_at = -float("inf")  # the end of the last wait that was in vain, monotonic seconds

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._line(record)
            until = time.monotonic() + self._patience_seconds()
            self._write_rest(until)
            if self._rest:
                self._drop("nobody read it")
                return
            whole = self._rest = self._note() + line
            self._write_rest(until)
            if len(self._rest) < len(whole):
                self._dropped = 0
            else:
                self._rest = b""
                self._drop("nobody read it")
        except OSError as error:
            self._rest = b""
            if not self._dropped:
                _say_on_stderr(f"billaged: the log cannot be written: {error.strerror or error}\n")
            self._drop(error.strerror or str(error))
        except Exception:  # noqa: BLE001 - as the library's handlers do with a line that cannot be made
            self.handleError(record)

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(self._encoding, "backslashreplace")

    def _note(self) -> bytes:
        if not self._dropped:
            return b""
        said = "%d lines of the log were dropped before this one: %s"
        note = logging.LogRecord(__name__, logging.WARNING, "", 0, said, (self._dropped, self._why), None)
        return self._line(note)

    def _drop(self, why: str) -> None:
        self._dropped += 1
        self._why = why

    def _patience_seconds(self) -> float:
        return min(self._wait_seconds, (time.monotonic() - self._waited_at) * _WAIT_SHARE)

    def _write_rest(self, until: float) -> None:
        """As much of it as there is a reader for.

        Raises:
            OSError: it cannot be written to any more.
        """
        while self._rest and self._is_writable(until):
            self._rest = self._rest[os.write(self._descriptor, self._rest[:_CHUNK_BYTES]) :]

    def _is_writable(self, until: float) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        if poll.poll(max(0.0, until - time.monotonic()) * 1000):
            return True
        self._waited_at = time.monotonic()
        return False


def _say_on_stderr(said: str) -> None:
    poll = select.poll()
    poll.register(_STDERR, select.POLLOUT)
    try:
        # It may be the same pipe.
        if poll.poll(0):
            os.write(_STDERR, said.encode("ascii", "backslashreplace"))
    except OSError:
        # There is no other place left to say it.
        return
