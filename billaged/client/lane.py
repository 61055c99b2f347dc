"""A spool on its way to the server."""

from __future__ import annotations

from collections import deque
from typing import Final

from billaged.client.cursor import Position
from billaged.client.delivery import Delivery, join
from billaged.client.failure import UNKEPT, CallFailed
from billaged.client.spool import Spool

WINDOW_RECORDS: Final = 10_000
_WINDOW_BYTES: Final = 2**20


class Lane:
    """Takes a spool's records window by window; one is acknowledged when all of it has left. Owned by one thread."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.window: deque[Delivery] = deque()  # what was read and has not left
        self._end = Position(0, 0)  # of the window

    def fill(self, max_records: int = WINDOW_RECORDS) -> bool:
        """Read the next window, unless one is open; False where nothing waits. Raises CallFailed: it cannot be read."""
        if self.window:
            return True
        try:
            records, self._end = self.spool.peek(max_records, _WINDOW_BYTES)
        except OSError as error:
            # Nothing behind it is sent before it: what is damaged leaves the spool only with a copy beside it.
            raise CallFailed(UNKEPT, f"{error.filename or self.spool.directory}: {error.strerror}") from error
        self.window.extend(join(records))
        if not records:
            self.settle()
        return bool(records)

    def split(self) -> None:
        """Send the first delivery in two parts."""
        self.window.extendleft(reversed(self.window.popleft().halves()))

    def settle(self) -> None:
        """Acknowledge the window: all of it has left."""
        self.spool.acknowledge(self._end)

    def give_up(self) -> None:
        """Forget the window: it is read again."""
        self.window.clear()
