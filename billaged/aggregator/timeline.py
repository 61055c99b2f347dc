"""The kept instants of a VM's timeline, in order of time, at hand."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Final

from billaged.aggregator.far import Far, Stretch
from billaged.aggregator.instant import Kept
from billaged.aggregator.session import Session
from billaged.aggregator.state import State
from billaged.model.time import DAY_NANOS

# A VM's newest so many are kept, so long.
KEPT_MAX: Final = 4_096
KEPT_NANOS: Final = 35 * DAY_NANOS


# More of them may be at hand: what is counted out may count again when the newest two are others.
_SPARE: Final = 8


class Timeline:
    """``kept`` rises by time; ``times`` are theirs. ``older`` has sessions that they speak of, beside the newest.

    What is in them is never changed, only replaced. States far from where points were put may be
    in ``far`` only: ``state_after`` and ``newer`` know.
    """

    __slots__ = ("_stale", "far", "kept", "number", "older", "times")

    def __init__(self, number: int = 1, kept: Iterable[Kept] = (), older: Iterable[Session] = ()) -> None:
        self.number = number
        self.kept = list(kept)
        self.times = [each.instant.time_ns for each in self.kept]
        self.older = {session.ordinal: session for session in older}
        self.far: Far | None = None
        # From and through which time `kept` may not say how things stand.
        self._stale: tuple[int, int] | None = None

    def copy(self) -> Timeline:
        twin = Timeline(self.number)
        twin.kept, twin.times, twin.older = self.kept.copy(), self.times.copy(), self.older.copy()
        twin.far, twin._stale = None if self.far is None else self.far.copy(), self._stale
        return twin

    def __len__(self) -> int:
        return len(self.kept)

    def place(self, time_ns: int) -> int:
        """The index of the instant of this time, or of the first one after it."""
        return bisect_left(self.times, time_ns)

    def at(self, time_ns: int) -> Kept | None:
        index = bisect_left(self.times, time_ns)
        return self.kept[index] if index < len(self.times) and self.times[index] == time_ns else None

    def put(self, kept: Kept) -> None:
        """Put it in its place, or in the place of the one that is there."""
        time_ns = kept.instant.time_ns
        index = bisect_left(self.times, time_ns)
        if index < len(self.times) and self.times[index] == time_ns:
            self.replace(index, kept)
            return
        self.kept.insert(index, kept)
        self.times.insert(index, time_ns)
        if self.far is not None:
            self.far.insert(index, kept)

    def replace(self, index: int, kept: Kept) -> None:
        self.kept[index] = kept
        if self.far is not None:
            self.far.replace(index, kept)

    def drop(self, time_ns: int) -> None:
        index = bisect_left(self.times, time_ns)
        if index < len(self.times) and self.times[index] == time_ns:
            del self.kept[index], self.times[index]
            if self.far is not None:
                self.far.drop(index, index + 1)

    def trim(self) -> list[int]:
        """Let go of what is beyond the newest so many; their times."""
        beyond = len(self.kept) - KEPT_MAX - _SPARE
        if beyond <= 0:
            return []
        gone = self.times[:beyond]
        del self.kept[:beyond], self.times[:beyond]
        if self.far is not None:
            self.far.drop(0, beyond)
        return gone

    def is_for_good(self, time_ns: int) -> bool:
        """Whether the instant of this time is kept also when it is not one of the newest two."""
        index = bisect_left(self.times, time_ns)
        here, following = self.kept[index], self.kept[index + 1 : index + 2]
        return here.is_open or here.is_first or any(each.is_open for each in following)

    # --- states, wherever they are -----------------------------------------------

    def in_columns(self) -> Far:
        if self.far is None:
            self.far = Far(self.kept)
        return self.far

    def write_far(self, stretch: Stretch) -> None:
        """New values for the states of a stretch."""
        first, last = self.times[stretch.start], self.times[stretch.end - 1]
        if self._stale is not None:
            first, last = min(first, self._stale[0]), max(last, self._stale[1])
        self._stale = (first, last)
        self.in_columns().write(stretch)

    def state_after(self, index: int) -> State:
        if self.far is None or self._stale is None or not self._stale[0] <= self.times[index] <= self._stale[1]:
            return self.kept[index].after
        return self.far.after(index)

    def newer(self, index: int) -> Kept:
        """The instant of this index, with how things stand around it."""
        kept = self.kept[index]
        if self.far is None or self._stale is None:
            return kept
        # What is before it is what is after the one before; the first one's never changes.
        before = self.state_after(index - 1) if kept.is_open and index else kept.before
        return kept._replace(after=self.state_after(index), before=before)

    def settle_far(self) -> list[Kept]:
        """Those that may have changed in the columns only; from now on ``kept`` says it all."""
        if self.far is None or self._stale is None:
            self.far = None
            return []
        # One more: what is before it has changed.
        first = bisect_left(self.times, self._stale[0])
        end = min(bisect_right(self.times, self._stale[1]) + 1, len(self.times))
        changed = [self.newer(index) for index in range(first, end)]
        self.kept[first:end] = changed
        self.far, self._stale = None, None
        return changed

    def first_kept(self, horizon_ns: int) -> int:
        """The index of the oldest that is still kept: all before it are forgotten, but never the newest two."""
        count = len(self.kept)
        return max(0, min(max(bisect_left(self.times, horizon_ns), count - KEPT_MAX), count - 2))
