"""Instants of a timeline, and what is kept of them."""

from __future__ import annotations

from typing import NamedTuple

from billaged.aggregator.state import State


class Instant(NamedTuple):
    """The points of one time."""

    time_ns: int
    # The number of the session that the start opens; without one, of the session that the sample opens; else 0.
    opens: int = 0
    has_start: bool = False
    # Memory, then the five counters.
    sample: tuple[int, ...] | None = None
    has_stop: bool = False

    @property
    def is_bound(self) -> bool:
        """Whether it holds a start or a stop."""
        return self.has_start or self.has_stop


class Kept(NamedTuple):
    """An instant, the link into it, and how the walk stood around it."""

    instant: Instant
    # The rules (their number) of the link into it, and whether that is open for good.
    rules: int
    is_open: bool
    after: State
    # None where the link is closed and nobody knows any more what was before: a sample of a running session then.
    before: State | None = None
    # The timeline's first; no point may be put before its floor.
    is_first: bool = False
    floor_ns: int = 0

    @property
    def time_ns(self) -> int:
        return self.instant.time_ns

    def ordinals(self) -> set[int]:
        """The numbers of the sessions that it speaks of, and 0."""
        return {self.instant.opens, self.after.ordinal, 0 if self.before is None else self.before.ordinal}
