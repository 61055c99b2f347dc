"""When buckets close: ten minutes of ticks after the tick that first saw them ended."""

from __future__ import annotations

from typing import Final, NamedTuple

from billaged.model.records import Tick
from billaged.model.time import MINUTE_NANOS

CLOSES_AFTER_NANOS: Final = 10 * MINUTE_NANOS


class BucketClock(NamedTuple):
    """``closed_through_ns``: buckets ending there or before are closed. ``waiting``: ended edges, each with the
    ticks' time since it was first seen; edges rise."""

    closed_through_ns: int = 0
    newest_edge_ns: int = 0
    waiting: tuple[tuple[int, int], ...] = ()

    def after(self, tick: Tick, bucket_ns: int) -> BucketClock:
        """The clock after one tick."""
        closed_through, waiting = self.closed_through_ns, []
        for edge, passed in self.waiting:
            passed += tick.length_ns
            if passed >= CLOSES_AFTER_NANOS:
                closed_through = max(closed_through, edge)
            else:
                waiting.append((edge, passed))
        edge = tick.time_ns - tick.time_ns % bucket_ns
        newest = self.newest_edge_ns
        if edge > newest:
            newest = edge
            waiting.append((edge, 0))
        return BucketClock(closed_through, newest, tuple(waiting))
