"""When buckets close: ten minutes of ticks after the tick that first saw them ended.

A tick's time is the wall clock's, which may be wrong for a moment, or for days. So the fold
has a time of its own, which goes ahead only as far as ticks have passed or samples have come.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from billaged.model.records import Tick
from billaged.model.time import MINUTE_NANOS

CLOSES_AFTER_NANOS: Final = 10 * MINUTE_NANOS


class BucketClock(NamedTuple):
    """``closed_through_ns``: buckets ending there or before are closed. ``waiting``: ended edges, each with the
    ticks' time since it was first seen; edges rise."""

    closed_through_ns: int = 0
    # What the fold takes for the time; None before the first tick.
    time_ns: int | None = None
    newest_sample_ns: int = 0
    waiting: tuple[tuple[int, int], ...] = ()
    # The latest that the time has ever been with a sample as new: nothing but a tick moves it, and never back.
    latest_ns: int | None = None

    def seeing(self, sample_ns: int) -> BucketClock:
        """The clock after a sample of this time."""
        return self._replace(newest_sample_ns=sample_ns) if sample_ns > self.newest_sample_ns else self

    def after(self, tick: Tick, bucket_ns: int) -> BucketClock:
        """The clock after one tick."""
        time_ns = tick.time_ns
        if self.time_ns is not None:
            time_ns = min(time_ns, max(self.time_ns + tick.length_ns, self.newest_sample_ns))
        closed_through, waiting = self.closed_through_ns, []
        for edge, passed in self.waiting:
            if edge > time_ns:
                # The time has gone back: it has not ended after all.
                continue
            passed += tick.length_ns
            if passed >= CLOSES_AFTER_NANOS:
                closed_through = max(closed_through, edge)
            else:
                waiting.append((edge, passed))
        edge = time_ns - time_ns % bucket_ns
        if edge > max(closed_through, waiting[-1][0] if waiting else 0):
            waiting.append((edge, 0))
        return BucketClock(closed_through, time_ns, self.newest_sample_ns, tuple(waiting), self._latest_at(time_ns))

    def _latest_at(self, time_ns: int) -> int | None:
        # Nothing bounds the time of the first tick: alone, a wrong one would make all that comes too old to be kept.
        if not self.newest_sample_ns:
            return self.latest_ns
        seen_ns = min(time_ns, self.newest_sample_ns)
        return seen_ns if self.latest_ns is None else max(self.latest_ns, seen_ns)
