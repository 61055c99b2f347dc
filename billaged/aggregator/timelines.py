"""Timelines at hand: those that the ledger was asked for, and those of VMs that it does not know yet.

Between two flushes only. What is not in the ledger yet is in the effects, which each timeline is made up with.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from billaged.aggregator.changes import LedgerWriter, Row
from billaged.aggregator.effects import Effects
from billaged.aggregator.instant import Instant, Kept
from billaged.aggregator.packing import unpack
from billaged.aggregator.session import Session
from billaged.aggregator.state import RUNNING, State
from billaged.aggregator.timeline import Timeline
from billaged.aggregator.vm import NotAtHand, Vm

# At hand at once, beside those that one run needs: some 100 MB.
_INSTANTS_MAX: Final = 150_000


class LoadedTimelines(NamedTuple):
    """What the ledger holds of these VMs' timelines; of some it may hold nothing."""

    vm_ids: Sequence[str]
    timelines: dict[str, Timeline]


def load_timelines(ledger: LedgerWriter, vm_ids: Collection[str]) -> LoadedTimelines:
    """Ask the ledger. Needs no lock.

    Raises:
        StorageError: a row is damaged, or cannot be read.
    """
    kept: dict[str, list[Row]] = {}
    for row in ledger.kept_instants(vm_ids):
        kept.setdefault(row[0], []).append(row)
    timelines = {
        vm_id: Timeline(rows[0][1], (unpack(time_ns, content) for _, _, time_ns, content in rows))
        for vm_id, rows in kept.items()
    }
    wanted = {
        vm_id: {ordinal for each in timeline.kept for ordinal in each.ordinals() if ordinal}
        for vm_id, timeline in timelines.items()
    }
    for row in ledger.sessions(wanted):
        session = Session.of_row(row)
        timelines[session.vm_id].older[session.ordinal] = session
    return LoadedTimelines(tuple(vm_ids), timelines)


class Timelines:
    """By VM."""

    def __init__(self) -> None:
        self._at_hand: dict[str, Timeline] = {}
        self._instants = 0
        # VMs of which the ledger holds nothing: the effects have all of their timelines.
        self._unknown_to_ledger: set[str] = set()
        self._stops_in_ledger: set[str] = set()

    def __contains__(self, vm_id: object) -> bool:
        return vm_id in self._at_hand or vm_id in self._unknown_to_ledger or vm_id in self._stops_in_ledger

    def is_at_hand(self, vm_id: str) -> bool:
        """Whether the ledger was asked for it."""
        return vm_id in self._at_hand

    def clear(self) -> None:
        """All that is known is on its way to the ledger: it can be asked again."""
        self._at_hand.clear()
        self._unknown_to_ledger.clear()
        self._stops_in_ledger.clear()
        self._instants = 0

    def is_new(self, vm_id: str) -> None:
        """Nobody has heard of this VM before."""
        self._unknown_to_ledger.add(vm_id)

    def restore(self, loaded: LoadedTimelines, effects: Effects, needed: Collection[str]) -> None:
        """Take up what the ledger holds. Where there are too many, those that are not needed are let go."""
        if self._instants > _INSTANTS_MAX:
            self._at_hand = {vm_id: timeline for vm_id, timeline in self._at_hand.items() if vm_id in needed}
        for vm_id in loaded.vm_ids:
            self._at_hand[vm_id] = _made_up(vm_id, loaded.timelines.get(vm_id), effects)
        self._instants = sum(map(len, self._at_hand.values()))

    def expect(self, vm_ids: Collection[str]) -> None:
        """VMs without a session of which the ledger holds kept instants all the same: stops alone."""
        self._stops_in_ledger.update(vm_ids)

    def attach(self, vm: Vm, effects: Effects) -> None:
        """Give the VM its timeline, where it is at hand. One with no session has none without it.

        Raises:
            NotAtHand: the VM has no session, but stops that only the ledger has.
        """
        base = self._at_hand.get(vm.vm_id)
        if base is None:
            is_new = vm.vm_id in self._unknown_to_ledger
            if vm.session is not None and not is_new:
                return
            if vm.vm_id in self._stops_in_ledger:
                raise NotAtHand(vm.vm_id)
            base = _made_up(vm.vm_id, None, effects)
        if vm.session is None:
            _take_up_stops(vm, base)
        else:
            vm.timeline = _of_sessions(vm, base)

    def put_back(self, vm: Vm) -> None:
        """Keep what became of a timeline that was at hand, as the ledger will have it."""
        timeline = vm.timeline
        if timeline is None or vm.vm_id in self._unknown_to_ledger:
            return
        if len(timeline) > 1:
            previous, newest = timeline.kept[-2:]
            is_kept = previous.is_open or previous.is_first or newest.is_open
            if not (is_kept or vm.previous_loose):
                timeline.drop(previous.instant.time_ns)
        if not vm.newest_stored and len(timeline):
            timeline.drop(timeline.times[-1])
        self._at_hand[vm.vm_id] = timeline


def _made_up(vm_id: str, base: Timeline | None, effects: Effects) -> Timeline:
    """What the ledger has, with what is on its way there."""
    changes, sessions = effects.kept.get(vm_id), effects.superseded.get(vm_id, {})
    if changes is not None and (base is None or base.number != changes.timeline):
        base = Timeline(changes.timeline)
    if base is None:
        base = Timeline()
    if changes is not None:
        for time_ns in sorted(changes.by_time):
            kept = changes.by_time[time_ns]
            if kept is None:
                base.drop(time_ns)
            else:
                base.put(kept)
    base.older.update(sessions)
    return base


def _of_sessions(vm: Vm, base: Timeline) -> Timeline:
    """The VM's timeline with its newest two instants, which may be stored nowhere."""
    timeline = base.copy() if base.number == vm.number else Timeline(vm.number)
    if not vm.newest_stored:
        timeline.put(vm.newest_kept())
    newest = timeline.kept[-1]
    if newest.instant.time_ns != vm.newest_ns:
        raise ValueError(f"VM {vm.vm_id}: its newest instant is not among the kept ones")
    if not (newest.is_open or newest.is_first) and vm.previous is not None and timeline.at(vm.previous[0]) is None:
        timeline.put(_previous(vm, newest))
    return timeline


def _previous(vm: Vm, newest: Kept) -> Kept:
    """The instant before the newest, where it is not stored: a sample, and closed links at either side of it."""
    if vm.previous is None:
        raise ValueError(f"VM {vm.vm_id} has no instant before the newest one")
    time_ns, *sample = vm.previous
    memory_bytes, *counters = sample
    after = newest.before
    if after is None:
        last, ordinal, marks = tuple(counters), vm.state.ordinal, vm.state.marks
        after = State(RUNNING, ordinal, True, time_ns, memory_bytes, last=last, marks=marks)  # type: ignore[arg-type]
    # Nobody knows its rules any more, and nothing will be billed by them: what is put there is a stop.
    return Kept(Instant(time_ns, sample=tuple(sample)), vm.link_rules, is_open=False, after=after)


def _take_up_stops(vm: Vm, base: Timeline) -> None:
    """A VM without a session: all of its instants are stops, and stored."""
    timeline = vm.timeline = base.copy()
    vm.number = timeline.number
    if timeline.kept:
        newest = timeline.kept[-1]
        vm.newest_ns, vm.newest_stop, vm.newest_stored = newest.instant.time_ns, True, True
        vm.state, vm.link_rules = newest.after, newest.rules
