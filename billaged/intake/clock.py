"""Whether the machine's clock can be trusted: steps back and ahead, and how long it has gone steadily."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from billaged.intake.validation import Now
from billaged.model.time import HOUR_NANOS, MINUTE_NANOS, NANOS, Clock, format_instant

_log = logging.getLogger("billaged.intake")

# Smaller steps are the clock being kept in order.
_STEP_NANOS: Final = 5 * NANOS
_REMEMBERED_NANOS: Final = HOUR_NANOS
# A step ahead by more than this is believed once it has stayed for as long as that.
_JUMP_NANOS: Final = 5 * MINUTE_NANOS
_BELIEVED_AFTER_NANOS: Final = 10 * MINUTE_NANOS


def suspended_nanos() -> int:
    """How long the machine has slept since its boot: the wall clock went on, the monotonic one did not."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def awake_and_asleep_nanos() -> int:
    """Nanoseconds that passed, asleep or not, since an arbitrary start; no step of the wall clock is in it."""
    return time.monotonic_ns() + suspended_nanos()


class ClockWatch:
    """Compares the wall clock with the monotonic one.

    A clock that went back is remembered for an hour: what seems to come from the future may be right.
    One that jumps ahead is not believed for ten minutes. Until then requests are judged by the time it
    had before, so that a wrong one makes nobody's samples too old; what seems to come from the
    future of that time may be right, too.
    """

    def __init__(
        self, clock: Clock, newest_journaled_ns: int, suspended_nanos: Callable[[], int] = suspended_nanos
    ) -> None:
        """``newest_journaled_ns``: a time that the wall clock has been seen at before, 0 for none."""
        self._clock = clock
        self._suspended_nanos = suspended_nanos
        self._suspended_ns = suspended_nanos()
        # The wall clock less the monotonic one, as it was last believed.
        self._offset_ns = clock.wall_nanos() - clock.monotonic_nanos()
        # The same as it is since a jump that is not believed yet, and when that came.
        self._jumped_offset_ns: int | None = None
        self._jumped_at_ns = 0
        self._stepped_back_until_ns = 0
        if newest_journaled_ns - clock.wall_nanos() > _STEP_NANOS:
            self._remember(clock.monotonic_nanos())

    def now(self) -> Now:
        wall, monotonic = self._clock.wall_nanos(), self._clock.monotonic_nanos()
        offset = wall - monotonic
        if abs(offset - self._offset_ns) > _STEP_NANOS:
            self._allow_for_sleep()
            if offset < self._offset_ns - _STEP_NANOS:
                self._remember(monotonic)
            elif offset > self._offset_ns + _JUMP_NANOS and not self._has_stayed(offset, monotonic):
                return Now(monotonic + self._offset_ns, stepped_back=True)
        self._offset_ns = offset
        self._jumped_offset_ns = None
        return Now(wall, monotonic < self._stepped_back_until_ns)

    def _allow_for_sleep(self) -> None:
        slept = self._suspended_nanos() - self._suspended_ns
        # Less is the time between two readings.
        if slept >= NANOS:
            self._offset_ns += slept
            self._suspended_ns += slept

    def _has_stayed(self, offset_ns: int, monotonic_ns: int) -> bool:
        """Whether the clock has been ahead by this much for long enough to be believed."""
        if self._jumped_offset_ns is None or abs(offset_ns - self._jumped_offset_ns) > _STEP_NANOS:
            self._jumped_offset_ns, self._jumped_at_ns = offset_ns, monotonic_ns
            _log.warning(
                "the machine's clock has jumped ahead to %s; not believed unless it stays for ten minutes",
                format_instant(monotonic_ns + offset_ns),
            )
        return monotonic_ns - self._jumped_at_ns >= _BELIEVED_AFTER_NANOS

    def _remember(self, monotonic_ns: int) -> None:
        self._stepped_back_until_ns = monotonic_ns + _REMEMBERED_NANOS


class Steadiness:
    """Whether a time that is read again and again has gone on steadily, as time does, for the last hour.

    What cannot be undone waits for it: one wrong reading of a clock must not do it.
    """

    def __init__(self, passed_nanos: Callable[[], int]) -> None:
        """``passed_nanos``: a clock that never steps, as ``awake_and_asleep_nanos``."""
        self._passed_nanos = passed_nanos
        self._offset_ns: int | None = None
        self._since_ns = 0

    def holds(self, reading_ns: int) -> bool:
        """Take the newest reading. True where an hour of them has shown no step."""
        passed = self._passed_nanos()
        offset = reading_ns - passed
        if self._offset_ns is None or abs(offset - self._offset_ns) > _JUMP_NANOS:
            self._offset_ns, self._since_ns = offset, passed
        return passed - self._since_ns >= HOUR_NANOS
