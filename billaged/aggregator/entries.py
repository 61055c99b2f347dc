"""The entries of one VM, one after the other: each whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from billaged.aggregator.book import Book
from billaged.aggregator.effects import Effects
from billaged.aggregator.points import fold_samples, fold_start, fold_stop
from billaged.aggregator.progress import Progress
from billaged.aggregator.summary import one_each
from billaged.aggregator.vm import Context, Vm
from billaged.model.records import SAMPLE_WIDTH, JournalEntry, MetricsBatch, VmStarted, VmStopped
from billaged.model.time import INT64_MAX

WRONG_OWNER: Final = "wrong_owner"
# A total, or the number of a VM's sessions, would not fit its column any more.
OVERFLOW: Final = "overflow"
_ORDINAL_MAX: Final = 2**31 - 1


class Moment(NamedTuple):
    """What all entries between two barriers are folded under."""

    book: Book
    closed_through_ns: int
    horizon_ns: int
    passed_seconds: int
    progress: Progress


def fold_entries(vm: Vm, entries: Sequence[JournalEntry], moment: Moment, effects: Effects) -> Vm:
    """Fold a VM's entries in order; the VM as it is then. It does not matter which ones come together.

    Raises:
        NotAtHand: the VM's kept instants are needed first.
    """
    for entry in entries:
        if _surely_fits(vm, entry):
            taken = _fold_entry(vm, entry, moment, effects)
            if not taken:
                effects.bury(entry, WRONG_OWNER)
            continue
        before, mine = vm.copy(), Effects()
        taken = _fold_entry(vm, entry, moment, mine)
        if not _fits(vm, mine):
            vm, mine = before, Effects()
            mine.bury(entry, OVERFLOW)
        elif not taken:
            mine.bury(entry, WRONG_OWNER)
        effects.absorb(mine)
    _settle_timeline(vm, effects)
    return vm


def _settle_timeline(vm: Vm, effects: Effects) -> None:
    """Tell the ledger of what changed far from where points were put, and of what is counted out."""
    timeline = vm.timeline
    if timeline is None:
        return
    for kept in timeline.settle_far():
        time_ns = kept.instant.time_ns
        is_stored = time_ns != vm.newest_ns or vm.newest_stored
        if vm.previous is not None and time_ns == vm.previous[0]:
            is_stored = vm.previous_loose or timeline.is_for_good(time_ns)
        if is_stored:
            effects.keep(vm.vm_id, vm.number, time_ns, kept)
    vm.trim(effects)


def _fold_entry(vm: Vm, entry: JournalEntry, moment: Moment, effects: Effects) -> bool:
    """False where it belongs to another customer."""
    record = entry.record
    # Where the VM is another's the record changes no timeline, or begins one of its own customer's.
    customer_id = record.customer_id if isinstance(record, MetricsBatch | VmStarted) else vm.customer_id
    context = Context(
        entry.sequence,
        entry.received_ns,
        moment.book.of(customer_id),
        moment.book.number,
        moment.closed_through_ns,
        moment.horizon_ns,
        effects,
        moment.progress,
    )
    if isinstance(record, MetricsBatch):
        values = iter(record.samples)
        samples = sorted(zip(*[values] * SAMPLE_WIDTH, strict=True), key=lambda sample: sample[0])
        begun = len(effects.finals)
        if not fold_samples(vm, record.customer_id, samples, context):
            return False
        effects.finals[begun:] = one_each(effects.finals[begun:])
        effects.newest_sample_ns = max(effects.newest_sample_ns, samples[-1][0] if samples else 0)
    elif isinstance(record, VmStarted):
        if not fold_start(vm, record.customer_id, record.start_ns, context):
            return False
    elif isinstance(record, VmStopped):
        fold_stop(vm, record.stop_ns, context)
    vm.heard_seconds = moment.passed_seconds
    vm.has_run |= vm.is_running
    return True


def _surely_fits(vm: Vm, entry: JournalEntry) -> bool:
    """Whether the VM's totals would fit even if the entry billed all that it speaks of."""
    record = entry.record
    if vm.timeline is not None or vm.highest >= _ORDINAL_MAX - 1:
        # What is put in between may change any session, and by amounts that the entry does not speak of.
        return False
    most = 0 if vm.session is None else max(vm.session.counters)
    if isinstance(record, MetricsBatch):
        most += sum(record.samples) - sum(record.samples[::SAMPLE_WIDTH])
    return most <= INT64_MAX


def _fits(vm: Vm, effects: Effects) -> bool:
    """Whether what an entry did fits its columns."""
    if vm.highest > _ORDINAL_MAX:
        return False
    sessions = [*effects.superseded.get(vm.vm_id, {}).values()]
    if vm.session is not None:
        sessions.append(vm.session)
    return all(max(session.counters) <= INT64_MAX for session in sessions)
