"""From the difference of two walks, before and after a point, to what it changes: postings, gaps, sessions, records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from billaged.aggregator.billed import MEMORY, PEAK, SAMPLES, Billed, BucketKey, Gap, GapKey
from billaged.aggregator.effects import NO_AMOUNTS, Amounts, FactKey, GapRow, Posting
from billaged.aggregator.session import Session
from billaged.aggregator.state import ENDED, State
from billaged.aggregator.vm import Context, Vm
from billaged.model.records import COUNTERS


def settle(
    vm: Vm,
    start: State,
    old: Sequence[Billed],
    new: Sequence[Billed],
    after: State | None,
    context: Context,
    cause: str,
    item: int = 0,
) -> None:
    """Post what is billed now and was not, or the other way round.

    ``start`` is where both walks began. ``after`` is how the new one stands after the newest instant, None where
    it met the old one before that: then all further on is as it was.
    """
    sessions = _Sessions(vm)
    for billed in new:
        for opened in billed.opened:
            session = sessions.open(opened.ordinal)
            session.start_ns, session.explicit = opened.start_ns, opened.explicit
        for left in billed.left:
            session = sessions.get(left.ordinal)
            session.last_ns, session.end_ns, session.end_kind = left[1:]
    _post(vm, old, new, sessions, context, cause)
    _post_gaps(vm, start, old, new, sessions, context)
    for billed in new:
        for ordinal, memory_bytes in filter(None, (billed.held, _counted_in(billed))):
            base = sessions.get(ordinal).window_base
            base[-1] = max(base[-1], memory_bytes)
    _record(vm, old, new, context, item)
    sessions.write(after, context)


def _counted_in(billed: Billed) -> tuple[int, int] | None:
    return billed.counted and (billed.counted[0][0], billed.counted[2])


class _Sessions:
    """Those that are touched: copies, until they are written."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._touched: dict[int, Session] = {}

    def get(self, ordinal: int) -> Session:
        session = self._touched.get(ordinal) or self._known(ordinal)
        if session is None:
            raise KeyError(f"session {ordinal} of VM {self._vm.vm_id} is not at hand")
        return session

    def open(self, ordinal: int) -> Session:
        """One that is new, or begins at another time than before."""
        session = self._touched.get(ordinal) or self._known(ordinal)
        if session is None:
            session = self._touched[ordinal] = Session(self._vm.vm_id, ordinal, self._vm.customer_id)
        return session

    def _known(self, ordinal: int) -> Session | None:
        vm = self._vm
        if vm.session is not None and vm.session.ordinal == ordinal:
            session = vm.session
        else:
            older = None if vm.timeline is None else vm.timeline.older.get(ordinal)
            if older is None:
                return None
            session = older.copy()
        self._touched[ordinal] = session
        return session

    def write(self, after: State | None, context: Context) -> None:
        vm, before = self._vm, self._vm.session
        if after is not None and after.ordinal:
            newest = self.get(after.ordinal)
            ended_before = newest.end_ns
            newest.last_ns = after.last_ns
            has_ended = after.phase == ENDED
            newest.end_ns, newest.end_kind = (after.end_ns, "stop") if has_ended else (None, None)
            if before is None or newest.ordinal != before.ordinal:
                vm.session, vm.has_another_session, vm.has_run = newest, True, False
            if has_ended and newest.end_ns != ended_before:
                context.effects.finals.append(newest.summarise(context.received_ns))
        for ordinal, session in self._touched.items():
            if session is not vm.session:
                self._write_older(ordinal, session, context)
            elif session.end_ns is not None:
                _tell_of_change(session, context)

    def _write_older(self, ordinal: int, session: Session, context: Context) -> None:
        vm = self._vm
        _tell_of_change(session, context)
        context.effects.supersede(session)
        if vm.timeline is not None:
            vm.timeline.older[ordinal] = session


def _tell_of_change(session: Session, context: Context) -> None:
    if session.totals_without_peak() != session.window_base:
        context.effects.finals.append(session.summarise(context.received_ns))


def _post(
    vm: Vm, old: Sequence[Billed], new: Sequence[Billed], sessions: _Sessions, context: Context, cause: str
) -> None:
    changed: dict[BucketKey, list[int]] = {}
    for sign, walked in ((1, new), (-1, old)):
        for billed in walked:
            for key, values in billed.postings.items():
                sums = changed.get(key)
                if sums is None:
                    sums = changed[key] = [0] * (PEAK + 1)
                for index in range(PEAK):
                    sums[index] += sign * values[index]
    counted_before = {billed.counted for billed in old}
    for billed in new:
        if billed.counted is not None and billed.counted not in counted_before:
            key, _, memory_bytes = billed.counted
            changed[key][PEAK] = max(changed[key][PEAK], memory_bytes)
            session = sessions.get(key[0])
            session.peak_bytes = max(session.peak_bytes, memory_bytes)
    for key, values in changed.items():
        if not any(values):
            continue
        ordinal, bucket_start_ns, bucket_ns = key
        session = sessions.get(ordinal)
        for index in range(COUNTERS):
            session.counters[index] += values[index]
        session.memory_byte_nanos += values[MEMORY]
        session.samples += values[SAMPLES]
        amounts: Amounts = tuple(values[:COUNTERS])  # type: ignore[assignment]
        posting = Posting(vm.customer_id, amounts, *values[COUNTERS:])
        fact = FactKey(bucket_start_ns, bucket_ns, vm.vm_id, ordinal)
        context.effects.post(context.sequence, fact, posting, context.closed_through_ns, cause)


def _post_gaps(
    vm: Vm, start: State, old: Sequence[Billed], new: Sequence[Billed], sessions: _Sessions, context: Context
) -> None:
    before, now = _gaps_after(start, old, context), _gaps_after(start, new, context)
    if before == now:
        return
    gap_ns: defaultdict[int, int] = defaultdict(int)
    for sign, gaps in ((1, now), (-1, before)):
        for (ordinal, start_ns), gap in gaps.items():
            gap_ns[ordinal] += sign * (gap.end_ns - start_ns)
            counters = sessions.get(ordinal).counters
            for index in range(COUNTERS):
                counters[index] += sign * gap.amounts[index]
    for ordinal, changed_ns in gap_ns.items():
        sessions.get(ordinal).gap_ns += changed_ns
    for key in before.keys() - now.keys():
        context.effects.gaps[vm.vm_id, *key] = None
    for key, gap in now.items():
        if before.get(key) != gap:
            row = GapRow(vm.vm_id, *key, gap.end_ns, gap.kind, vm.customer_id, gap.amounts, context.sequence)
            context.effects.gaps[vm.vm_id, *key] = row


def _gaps_after(start: State, walked: Sequence[Billed], context: Context) -> dict[GapKey, Gap]:
    """The gaps of a stretch, and that of a tail which ended at its beginning: a walk may take that one back."""
    gaps: dict[GapKey, Gap] = {}
    if start.phase == ENDED and start.end_ns - start.last_ns > context.book[start.tail_rules].gap_threshold_ns:
        gaps[start.ordinal, start.last_ns] = Gap(start.end_ns, "stop", NO_AMOUNTS)
    for billed in walked:
        for key, gap in billed.gaps:
            if gap is None:
                gaps.pop(key, None)
            else:
                gaps[key] = gap
    return gaps


def _record(vm: Vm, old: Sequence[Billed], new: Sequence[Billed], context: Context, item: int) -> None:
    known = {(found.kind, found.at_ns) for billed in old for found in billed.found}
    for billed in new:
        for found in billed.found:
            if (found.kind, found.at_ns) not in known:
                vm.record_about(found.ordinal, context, found.kind, found.at_ns, found.detail, item)
