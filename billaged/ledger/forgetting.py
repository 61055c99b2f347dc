"""Kept instants that are too old to be kept: the fold forgets them by rule, the ledger's file a little later."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, delete, exists, select, tuple_

from billaged.aggregator.buckets import BucketClock
from billaged.aggregator.timeline import KEPT_NANOS
from billaged.ledger import tables as t
from billaged.model.time import DAY_NANOS, HOUR_NANOS

# By the fold's time: often enough that each time there are few.
_EVERY_NANOS: Final = HOUR_NANOS
# So far back it is looked, for a daemon that was down; what became old before that stays, and does no harm.
_BACK_NANOS: Final = 3 * DAY_NANOS


class Forgetting:
    """When it was done last; the rest is the ledger's."""

    def __init__(self) -> None:
        self._done_ns: int | None = None

    def run(self, connection: Connection, clock: BucketClock) -> None:
        """Delete what became too old since the last time, where that is a while ago.

        A VM's newest two are kept, whatever their age.
        """
        if clock.latest_ns is None:
            return
        horizon_ns = clock.latest_ns - KEPT_NANOS
        if self._done_ns is not None and horizon_ns < self._done_ns + _EVERY_NANOS:
            return
        since_ns = horizon_ns - _BACK_NANOS if self._done_ns is None else self._done_ns - _EVERY_NANOS
        old, newer = t.kept_instants.c, t.kept_instants.alias("newer").c
        is_newer = (newer.vm_id == old.vm_id) & (
            tuple_(newer.timeline, newer.time_ns) > tuple_(old.timeline, old.time_ns)
        )
        # The second newer one, where there is one.
        second = select(newer.time_ns).where(is_newer).order_by(newer.timeline, newer.time_ns).limit(1).offset(1)
        connection.execute(
            delete(t.kept_instants).where(old.time_ns >= since_ns, old.time_ns < horizon_ns, exists(second))
        )
        self._done_ns = horizon_ns
