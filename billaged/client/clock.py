"""The machine's clocks."""

from __future__ import annotations

import os
import time
from typing import Final

from billaged.model.time import NANOS

CLOCK_TICK_NANOS: Final = NANOS // os.sysconf("SC_CLK_TCK")


class SystemClock:
    """A ``billaged.model.time.Clock`` that asks the machine."""

    def wall_nanos(self) -> int:
        return time.time_ns()

    def monotonic_nanos(self) -> int:
        return time.monotonic_ns()


def ticks_to_nanos(seconds: float) -> int:
    """Nanoseconds of CPU time that the kernel counts in clock ticks and psutil gives in seconds, exactly."""
    return round(seconds * NANOS / CLOCK_TICK_NANOS) * CLOCK_TICK_NANOS
