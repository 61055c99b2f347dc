"""A timeline: all instants ever accepted, in order of time, and where a point may be put among them."""

from __future__ import annotations

from bisect import bisect_left
from typing import Literal, NamedTuple

from auditor.billed import Difference, difference
from auditor.events import DAY_NS, Rules
from auditor.instant import Instant, Point
from auditor.state import State
from auditor.walk import Walked, walk

KEPT_NS = 35 * DAY_NS
KEPT_COUNT = 4096
FOLLOWING_LINKS = 8


class Put(NamedTuple):
    """What became of a point."""

    how: Literal["appended", "inserted", "duplicate", "conflict", "refused"]
    change: Difference = Difference({}, [], [], [])
    # Appended, or put at the newest instant.
    is_newest: bool = False
    # The first instant that was walked again.
    from_index: int = 0


class Timeline:
    """``begin`` is the state before the first instant; no point may lie before the floor."""

    # Stops alone are nobody's.
    customer_id = ""

    def __init__(self, floor_ns: int, begin: State) -> None:
        self.floor_ns = floor_ns
        self.begin = begin
        self.instants: list[Instant] = []
        # Beside each instant.
        self.walked: list[Walked] = []
        # The number of the session that a sample opens; None where there is no such session.
        self.implicit_ordinal: int | None = None
        # How many links into appended samples will be open yet.
        self.following = 0

    def copy(self) -> Timeline:
        """Its own lists, of the same unchanging things."""
        other = Timeline(self.floor_ns, self.begin)
        other.instants, other.walked = list(self.instants), list(self.walked)
        other.implicit_ordinal, other.following = self.implicit_ordinal, self.following
        other.customer_id = self.customer_id
        return other

    @property
    def state(self) -> State:
        return self._before(len(self.instants))

    @property
    def newest_ns(self) -> int | None:
        return self.instants[-1].time_ns if self.instants else None

    def put(self, point: Point, rules: Rules, latest_ns: int | None, free_ordinal: int) -> Put:
        """Append or insert a point, by these rules where they are needed.

        ``latest_ns`` is the latest that the time has been, ``free_ordinal`` the number of the VM's next session.
        """
        if not self.instants or point.time_ns > self.instants[-1].time_ns:
            return self._append(point, rules, free_ordinal)
        index = bisect_left(self.instants, point.time_ns, key=lambda instant: instant.time_ns)
        there = self.instants[index]
        if there.time_ns != point.time_ns:
            may_be_put = point.time_ns >= self.floor_ns and self._is_open(index, latest_ns)
            changed = [
                Instant(point.time_ns, there.rules, open_link=True).with_point(
                    point, self._ordinal(point, free_ordinal)
                ),
                there._replace(open_link=True),
            ]
            return self._insert(index, changed, free_ordinal, latest_ns) if may_be_put else Put("refused")
        if not self._is_kept(index, latest_ns):
            return Put("refused")
        if there.holds(point.sort):
            return Put("duplicate" if point.sample == there.sample or point.sample is None else "conflict")
        if not self._is_open(index, latest_ns) and (point.sort != "stop" or there.holds("start") or not there.sample):
            return Put("refused")
        return self._insert(
            index, [there.with_point(point, self._ordinal(point, free_ordinal))], free_ordinal, latest_ns
        )

    def _append(self, point: Point, rules: Rules, free_ordinal: int) -> Put:
        instant = Instant(point.time_ns, rules).with_point(point, free_ordinal)
        walked = walk(self.state, instant, self.implicit_ordinal or free_ordinal, self.customer_id)
        notable = walked.billed.notable
        open_link = (
            not self.instants
            or self.instants[-1].holds_start_or_stop
            or instant.holds_start_or_stop
            or bool(notable & {"gap", "decrease", "passed", "implausible"})
            or self.following > 0
        )
        if point.sort != "sample":
            self.following = 0
        elif notable & {"step gap", "contradicted"}:
            self.following = FOLLOWING_LINKS
        else:
            self.following = max(0, self.following - 1)
        self.instants.append(instant._replace(open_link=open_link))
        self.walked.append(walked)
        self._number_implicit(free_ordinal)
        return Put("appended", difference([], [walked.billed]), True, len(self.instants) - 1)

    def _insert(self, index: int, changed: list[Instant], free_ordinal: int, latest_ns: int | None) -> Put:
        """Put these in the place of the instant of this index, where that changes no closed link."""
        is_newest = len(changed) == 1 and index == len(self.instants) - 1
        instants = [*changed, *self.instants[index + 1 :]]
        new = len(changed) - 1
        walked: list[Walked] = []
        state = self._before(index)
        for number, instant in enumerate(instants):
            walked.append(walk(state, instant, self.implicit_ordinal or free_ordinal, self.customer_id))
            # The instant that it was before, if it was one, and the link into it.
            at = index + number - new
            if at >= index:
                is_as_before = state.bearing == self._before(at).bearing
                is_as_before &= walked[-1].billed.same_bill(self.walked[at].billed)
                if not is_as_before and not self._is_open(at, latest_ns):
                    return Put("refused")
                if walked[-1].after == self.walked[at].after:
                    # From here on nothing can be other than it was.
                    break
            state = walked[-1].after
        stretch = slice(index, index + len(walked) - new)
        change = difference((each.billed for each in self.walked[stretch]), (each.billed for each in walked))
        self.instants[index : index + 1] = changed
        self.walked[stretch] = walked
        if index + len(walked) == len(self.walked) and "passed" in walked[-1].billed.notable:
            self.instants[-1] = self.instants[-1]._replace(open_link=True)
        self._number_implicit(free_ordinal)
        return Put("inserted", change, is_newest, index)

    def _before(self, index: int) -> State:
        return self.walked[index - 1].after if index else self.begin

    # Numbers

    def _implicit_ns(self) -> int | None:
        """When the session begins that a sample opened."""
        for instant in self.instants:
            if instant.holds("start"):
                return None
            if instant.sample is not None:
                return instant.time_ns
        return None

    def _ordinal(self, start: Point, free_ordinal: int) -> int:
        """The number of the session that an inserted start opens."""
        implicit_ns = self._implicit_ns()
        if implicit_ns is not None and start.time_ns <= implicit_ns and self.implicit_ordinal is not None:
            return self.implicit_ordinal
        return free_ordinal

    def _number_implicit(self, free_ordinal: int) -> None:
        if self._implicit_ns() is None:
            self.implicit_ordinal = None
        elif self.implicit_ordinal is None:
            self.implicit_ordinal = free_ordinal

    # What is kept, and open

    def _is_open_for_good(self, index: int) -> bool:
        """The link into this instant; there is none into the one after the newest."""
        return index < len(self.instants) and self.instants[index].open_link

    def _is_kept_of_itself(self, index: int, latest_ns: int | None) -> bool:
        """Whether it is kept as long as there is room."""
        if index >= len(self.instants) - 2:
            return True
        is_young = latest_ns is None or latest_ns - self.instants[index].time_ns <= KEPT_NS
        return is_young and (self._is_open_for_good(index) or self._is_open_for_good(index + 1))

    def _is_kept(self, index: int, latest_ns: int | None) -> bool:
        if not self._is_kept_of_itself(index, latest_ns):
            return False
        newer = range(index + 1, len(self.instants))
        return len(newer) < KEPT_COUNT or sum(self._is_kept_of_itself(each, latest_ns) for each in newer) < KEPT_COUNT

    def _is_open(self, index: int, latest_ns: int | None) -> bool:
        """The link into this instant, now."""
        if index == 0:
            return self._is_kept(0, latest_ns)
        is_newest = index == len(self.instants) - 1
        is_open = is_newest or self._is_open_for_good(index)
        return is_open and self._is_kept(index - 1, latest_ns) and self._is_kept(index, latest_ns)
