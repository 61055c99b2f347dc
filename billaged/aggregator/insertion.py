"""Putting a point anywhere but after the newest instant: into a link, at an instant, or before the first one.

The timeline is walked twice from there, as it was and as it is now, until both walks stand
alike or the newest instant is reached; the difference is posted. Nothing may change in a closed link.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from billaged.aggregator.billed import PASSED, Billed
from billaged.aggregator.crossing import cross
from billaged.aggregator.far import Stretch
from billaged.aggregator.instant import Instant, Kept
from billaged.aggregator.settling import settle
from billaged.aggregator.state import ENDED, NONE, State
from billaged.aggregator.timeline import KEPT_MAX, Timeline
from billaged.aggregator.vm import Context, Sample, Vm
from billaged.aggregator.walk import walk
from billaged.model.records import FoldRules

Sort = Literal["start", "sample", "stop"]
CAUSES: Final[dict[Sort, str]] = {"start": "start", "sample": "backfill", "stop": "stop"}


class Point(NamedTuple):
    sort: Sort
    time_ns: int
    # Memory, then the counters.
    values: tuple[int, ...] | None = None

    @classmethod
    def of_sample(cls, sample: Sample) -> Point:
        return cls("sample", sample[0], tuple(sample[1:]))

    def put_at(self, instant: Instant) -> Instant:
        if self.sort == "start":
            return instant._replace(has_start=True)
        if self.sort == "stop":
            return instant._replace(has_stop=True)
        return instant._replace(sample=self.values)


class _Place(NamedTuple):
    """Where a point goes."""

    # The index of the instant that it is put at, or before which it makes a new one.
    at: int
    is_new: bool
    # How things stand before it, and the link into it.
    before: State
    rules: int


def insert(vm: Vm, point: Point, context: Context, item: int = 0) -> bool:
    """Put a point in its place. False, and nothing has changed, where it has none.

    Raises:
        NotAtHand: the VM's kept instants are needed first.
    """
    timeline = vm.at_hand()
    first = timeline.first_kept(context.horizon_ns)
    index = timeline.place(point.time_ns)
    if index < len(timeline) and timeline.times[index] == point.time_ns:
        if index < first:
            return False
        here = timeline.newer(index)
        if not _is_open(timeline, index, first):
            return _put_stop_at(vm, point, index, context, item)
        place = _Place(index, False, _before(timeline, index), here.rules)
        instant = point.put_at(here.instant)
    else:
        if index == len(timeline) or not _may_open(vm, timeline, index, first, point.time_ns):
            return False
        before = _before(timeline, index) if index == 0 else timeline.state_after(index - 1)
        place = _Place(index, True, before, timeline.kept[index].rules)
        instant = point.put_at(Instant(point.time_ns))
    return _Insertion(vm, timeline, place, context).put(instant, point, item)


def _is_open(timeline: Timeline, index: int, first: int) -> bool:
    """Whether the link into a kept instant is open."""
    if index == 0:
        return timeline.kept[0].is_first
    # The newest link; else one that is open for good, while both its instants are kept.
    return index == len(timeline) - 1 or (timeline.kept[index].is_open and index > first)


def _may_open(vm: Vm, timeline: Timeline, index: int, first: int, time_ns: int) -> bool:
    """Whether a new instant may stand before this one."""
    if index == 0:
        here = timeline.kept[0]
        return here.is_first and first == 0 and time_ns >= here.floor_ns
    return index > first and _is_open(timeline, index, first)


def _before(timeline: Timeline, index: int) -> State:
    """How things stand before an instant with an open link into it."""
    before = timeline.newer(index).before
    return timeline.state_after(index - 1) if before is None else before


def _put_stop_at(vm: Vm, point: Point, index: int, context: Context, item: int) -> bool:
    """At an instant with a closed link into it: only a stop, after its sample, leaves that link alone."""
    timeline = vm.at_hand()
    here = timeline.newer(index)
    if point.sort != "stop" or here.instant.sample is None or here.instant.is_bound:
        return False
    place = _Place(index, False, here.after, here.rules)
    return _Insertion(vm, timeline, place, context).put_after_sample(here, item)


class _Insertion:
    """One point on its way in. Nothing is changed before it is sure that it has its place."""

    def __init__(self, vm: Vm, timeline: Timeline, place: _Place, context: Context) -> None:
        self._vm = vm
        self._timeline = timeline
        self._place = place
        self._context = context
        self._book: Sequence[FoldRules] = context.book
        # Instants that are to be replaced, by index, as things are now numbered.
        self._changed: dict[int, Kept] = {}
        # And those that stand otherwise, without billing otherwise.
        self._stretches: list[Stretch] = []
        self._old: list[Billed] = []
        self._new: list[Billed] = []
        # The index of the sample that opened the timeline's implicit session and does not any more.
        self._robbed: int | None = None
        self._highest = vm.highest

    def put(self, instant: Instant, point: Point, item: int) -> bool:
        place, timeline = self._place, self._timeline
        instant = self._numbered(instant, point)
        old_state = place.before
        if not place.is_new:
            here = timeline.newer(place.at)
            old_state = self._walk(place.before, here.instant, here.rules, self._old)
        new_state = self._walk(place.before, instant, place.rules, self._new)
        if place.is_new:
            is_first = place.at == 0
            floor_ns = timeline.kept[0].floor_ns if is_first else 0
            kept = Kept(instant, place.rules, True, new_state, place.before, is_first, floor_ns)
        else:
            is_open = here.is_open or (place.at == len(timeline) - 1 and self._has_passed())
            kept = here._replace(instant=instant, is_open=is_open, before=place.before, after=new_state)
        following = place.at if place.is_new else place.at + 1
        after = self._go_on(following, old_state, new_state)
        if after is _REFUSED:
            return False
        self._write(kept, after, CAUSES[point.sort], item)
        return True

    def put_after_sample(self, here: Kept, item: int) -> bool:
        """A stop at an instant with a closed link into it: all up to its sample stays as it is."""
        place = self._place
        stop = Instant(here.instant.time_ns, has_stop=True)
        new_state = self._walk(here.after, stop, here.rules, self._new)
        after = self._go_on(place.at + 1, here.after, new_state)
        if after is _REFUSED:
            return False
        kept = here._replace(instant=here.instant._replace(has_stop=True), after=new_state)
        self._write(kept, after, CAUSES["stop"], item)
        return True

    def _numbered(self, instant: Instant, point: Point) -> Instant:
        """The instant with the number of the session that it opens.

        The implicit session's number goes to whatever comes before the sample that opened it.
        """
        place, kept = self._place, self._timeline.kept
        opens = point.sort == "start" or (point.sort == "sample" and place.before.phase == NONE)
        if not opens or instant.opens:
            return instant
        if place.before.phase == NONE:
            for index in range(place.at + (not place.is_new), len(kept)):
                if kept[index].instant.opens:
                    if not kept[index].instant.has_start:
                        self._robbed = index
                        return instant._replace(opens=kept[index].instant.opens)
                    break
        self._highest += 1
        return instant._replace(opens=self._highest)

    def _walk(self, state: State, instant: Instant, rules: int, billed: list[Billed]) -> State:
        after, bill = walk(state, instant, rules, self._book)
        billed.append(bill)
        return after

    def _has_passed(self) -> bool:
        """Whether the step that was walked last passes a mark: the newest link is open for good then."""
        return bool(self._new[-1].notable & PASSED)

    def _go_on(self, index: int, old: State, new: State) -> State | None:
        """Walk on from before the instant of this index, until both walks stand alike.

        How the new one stands after the newest instant; None where they met before that. _REFUSED
        where a closed link would change.
        """
        timeline, place = self._timeline, self._place
        count = len(timeline)
        split = place.at if place.is_new else -1
        at = index
        while at < count:
            if at != split:
                if old == new:
                    return None
                # Columns are made for those who go far only.
                if timeline.far is not None or at >= index + _NEAR:
                    skipped = timeline.in_columns().skip(at, old, new)
                    if skipped is not None:
                        self._stretches.append(skipped.stretch)
                        at, old, new = skipped.stretch.end, skipped.old, skipped.new
                        continue
            here = timeline.kept[at]
            if here.is_open or at == count - 1 or at == split:
                instant = here.instant
                old_after = self._walk(old, instant, here.rules, self._old)
                if at == self._robbed:
                    instant = instant._replace(opens=0)
                new_after = self._walk(new, instant, here.rules, self._new)
                is_open = here.is_open or at == split or (at == count - 1 and self._has_passed())
                before = new if is_open or here.before is not None else None
                changed = here._replace(instant=instant, is_open=is_open, before=before, after=new_after)
                if at == split:
                    changed = changed._replace(is_first=False, floor_ns=0)
                self._changed[at] = changed
                old, new = old_after, new_after
            else:
                here = timeline.newer(at)
                across = cross(here, old, new, self._book)
                if across is None:
                    return _REFUSED
                self._changed[at] = across
                old, new = here.after, across.after
            at += 1
        return new

    def _write(self, kept: Kept, after: State | None, cause: str, item: int) -> None:
        vm, timeline, place, context = self._vm, self._timeline, self._place, self._context
        vm.highest = self._highest
        index, newest_was_open = place.at, timeline.kept[-1].is_open
        for stretch in self._stretches:
            timeline.write_far(stretch)
        for at, changed in self._changed.items():
            timeline.replace(at, changed)
        if place.is_new:
            timeline.put(kept)
            self._changed = {at + 1: changed for at, changed in self._changed.items()}
            if index == len(timeline) - 2:
                # The newest link was split: from now on the instant before it is kept for good.
                self._changed.setdefault(index - 1, timeline.newer(index - 1))
        else:
            timeline.replace(index, kept)
        self._changed[index] = kept
        count = len(timeline)
        if timeline.kept[-1].is_open and not newest_was_open and count > 1:
            self._changed.setdefault(count - 2, timeline.newer(count - 2))
        if after is not None:
            vm.state = after
        self._store()
        if count > 2 * KEPT_MAX:
            vm.trim(context.effects)
        settle(vm, place.before, self._old, self._new, after, context, cause, item)

    def _store(self) -> None:
        """Tell the ledger of what changed, and the VM of its newest two instants."""
        vm, timeline = self._vm, self._timeline
        count = len(timeline)
        newest, previous = timeline.newer(count - 1), timeline.newer(count - 2) if count > 1 else None
        vm.newest_start, vm.newest_stop = newest.instant.has_start, newest.instant.has_stop
        vm.newest_stored = newest.is_open or newest.is_first or newest.instant.is_bound
        vm.previous = None
        is_kept = True
        if previous is not None:
            if previous.instant.sample is not None:
                vm.previous = (previous.instant.time_ns, *previous.instant.sample)
            is_kept = previous.is_open or previous.is_first or newest.is_open
            # A stop that was put there is known from nowhere else.
            vm.previous_loose = previous.instant.is_bound and not is_kept
        stored = {count - 1: vm.newest_stored, count - 2: is_kept or vm.previous_loose}
        for at, changed in self._changed.items():
            if stored.get(at, True):
                self._context.effects.keep(vm.vm_id, vm.number, changed.instant.time_ns, changed)


_REFUSED: Final = State(phase=ENDED + 1)
# So many instants are walked one by one; most points change no more than the next one or two.
_NEAR: Final = 16
