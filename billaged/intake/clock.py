"""Whether the machine's clock can be trusted: a wall clock that went back is remembered for an hour."""

from __future__ import annotations

from typing import Final

from billaged.intake.validation import Now
from billaged.model.time import HOUR_NANOS, NANOS, Clock

# Smaller steps are the clock being kept in order.
_STEP_NANOS: Final = 5 * NANOS
_REMEMBERED_NANOS: Final = HOUR_NANOS


class ClockWatch:
    """Compares the wall clock with the monotonic one."""

    def __init__(self, clock: Clock, newest_journaled_ns: int) -> None:
        """``newest_journaled_ns``: a time that the wall clock has been seen at before, 0 for none."""
        self._clock = clock
        # The wall clock less the monotonic one, as it was last; a drop is a step back.
        self._offset_ns = clock.wall_nanos() - clock.monotonic_nanos()
        self._stepped_back_until_ns = 0
        if newest_journaled_ns - clock.wall_nanos() > _STEP_NANOS:
            self._remember(clock.monotonic_nanos())

    def now(self) -> Now:
        wall, monotonic = self._clock.wall_nanos(), self._clock.monotonic_nanos()
        offset = wall - monotonic
        if offset < self._offset_ns - _STEP_NANOS:
            self._remember(monotonic)
        self._offset_ns = offset
        return Now(wall, monotonic < self._stepped_back_until_ns)

    def _remember(self, monotonic_ns: int) -> None:
        self._stepped_back_until_ns = monotonic_ns + _REMEMBERED_NANOS
