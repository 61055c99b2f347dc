"""A time in which the server takes nothing, and what is said about it."""

from __future__ import annotations

import logging
from typing import Final

from billaged.client.failure import UNKEPT, CallFailed
from billaged.model.time import NANOS

_log = logging.getLogger(__name__)

# Who looks at the log of today must not have to find the line of last week.
AGAIN_NANOS: Final = 600 * NANOS
# How long calls may be cancelled before that is an outage: a server that stops, or a connection that is renewed, does
# it to those under way.
CANCELLED_NANOS: Final = 60 * NANOS


class Outage:
    """Says each cause once, again every ten minutes, and the end of it. Times are monotonic, ns."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._is_on = False
        self._said_ns: dict[str, int] = {}  # the causes of this outage, and when each was said
        self._cancelled_since_ns: int | None = None
        # A server that throttles does so for a moment, many times an hour: that is one story.
        self._throttling_said_ns: int | None = None

    def is_on(self) -> bool:
        return self._is_on

    def note(self, failure: CallFailed, seconds: float, waiting_bytes: int, now_ns: int) -> None:
        """A call has failed in a way that may pass; ``seconds`` until the next one."""
        self._is_on = True
        if self._is_passing(failure, now_ns) or not self._is_news(failure, now_ns):
            _log.debug("%s: %s; next try in %.1f s", self._address, failure, seconds)
        elif failure.is_throttling:
            _log.info("%s: %s; slowing down", self._address, failure)
        else:
            waiting = f"usage waits on disk, {waiting_bytes} bytes"
            # Beside a server that is away, what only somebody on this machine can set right.
            level = logging.ERROR if failure.code == UNKEPT else logging.WARNING
            _log.log(level, "%s: %s; %s. %s", self._address, failure, waiting, failure.hint or "It is tried again.")

    def end(self, acknowledged: int) -> None:
        """Calls are answered (again); ``acknowledged`` records so far."""
        self._is_on = False
        self._cancelled_since_ns = None
        if self._said_ns:
            _log.info("%s is back; %d records acknowledged so far", self._address, acknowledged)
            self._said_ns.clear()

    def _is_passing(self, failure: CallFailed, now_ns: int) -> bool:
        if failure.code != "CANCELLED":
            self._cancelled_since_ns = None
            return False
        if self._cancelled_since_ns is None:
            self._cancelled_since_ns = now_ns
        return now_ns - self._cancelled_since_ns < CANCELLED_NANOS

    def _is_news(self, failure: CallFailed, now_ns: int) -> bool:
        cause = failure.hint or failure.code
        said_ns = self._throttling_said_ns if failure.is_throttling else self._said_ns.get(cause)
        if said_ns is not None and now_ns - said_ns < AGAIN_NANOS:
            return False
        if failure.is_throttling:
            self._throttling_said_ns = now_ns
        else:
            self._said_ns[cause] = now_ns
        return True
