"""What some entries do, computed and not yet written: nothing here changes the engine, so all of it may fail."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from operator import itemgetter
from typing import Final, NamedTuple

from billaged.aggregator.columns import Columns
from billaged.aggregator.effects import Effects, ReportedGap
from billaged.aggregator.entries import Moment, fold_entries
from billaged.aggregator.exchange import load_vm
from billaged.aggregator.fold import Plan, plan
from billaged.aggregator.summary import SummaryBatch
from billaged.aggregator.timelines import Timelines
from billaged.aggregator.vm import NotAtHand, Vm
from billaged.model.records import (
    Heartbeat,
    JournalEntry,
    Kind,
    MetricsBatch,
    PossibleGap,
    VmStarted,
    VmStopped,
)

# What one run of entries may need of kept instants at once, in VMs.
NEEDED_VMS_MAX: Final = 32

_kind_of: Final = itemgetter(1)
_record_of: Final = itemgetter(5)
_vm_id_of: Final = itemgetter(0)
_sequence_of: Final = itemgetter(0)


class Known(NamedTuple):
    """What entries are folded on: the VMs, what is kept of them, and what waits for the ledger."""

    columns: Columns
    moment: Moment
    timelines: Timelines
    waiting: Effects


class Outcome(NamedTuple):
    effects: Effects
    planned: Plan | None = None
    vms: Sequence[Vm] = ()
    beats: Sequence[JournalEntry] = ()
    finals: SummaryBatch | None = None
    # VMs that need their kept instants, and those of them that have them not: then nothing else counts.
    needing: Sequence[str] = ()
    wanted: Sequence[str] = ()


def compute(entries: Sequence[JournalEntry], known: Known, *, only_metrics: bool) -> Outcome:
    """Fold entries between two barriers."""
    effects = Effects()
    metrics: Sequence[JournalEntry] = entries
    one_by_one: dict[str, list[JournalEntry]] = defaultdict(list)
    beats: list[JournalEntry] = []
    if not only_metrics:
        metrics = [entry for entry in entries if entry.kind is Kind.METRICS]
        for entry in entries:
            if entry.kind is not Kind.METRICS:
                _sort_out(entry, one_by_one, beats, effects)
    planned: Plan | None = None
    if metrics:
        batches: list[MetricsBatch] = list(map(_record_of, metrics))
        book, closed_through_ns = known.moment.book, known.moment.closed_through_ns
        planned, left = plan(known.columns, book, closed_through_ns, batches, set(one_by_one))
        for index in left.tolist():
            one_by_one[batches[index].vm_id].append(metrics[index])
    if planned is not None:
        effects.tallies["samples"] += len(planned.steps.row)
        effects.newest_sample_ns = int(planned.steps.time.max())
    return _fold_vms(one_by_one, known, Outcome(effects, planned, beats=beats))


def _fold_vms(entries: dict[str, list[JournalEntry]], known: Known, outcome: Outcome) -> Outcome:
    """One VM after the other, each with all of its entries."""
    vms: list[Vm] = []
    needing: list[str] = []
    wanted: list[str] = []
    for vm_id, mine in entries.items():
        vm = load_vm(known.columns, vm_id)
        mine.sort(key=_sequence_of)
        try:
            known.timelines.attach(vm, known.waiting)
            vms.append(fold_entries(vm, mine, known.moment, outcome.effects))
        except NotAtHand:
            wanted.append(vm_id)
            needing.append(vm_id)
        else:
            if known.timelines.is_at_hand(vm_id):
                needing.append(vm_id)
        if wanted and len(needing) > NEEDED_VMS_MAX:
            break
    if wanted:
        return Outcome(outcome.effects, needing=needing, wanted=wanted)
    return outcome._replace(vms=vms)


def only_metrics_in(entries: Sequence[JournalEntry]) -> bool:
    """Nearly always: asked without a look at each entry by hand."""
    return list(map(_kind_of, entries)).count(Kind.METRICS) == len(entries)


def vm_ids_of(entries: Sequence[JournalEntry]) -> set[str]:
    """Of the VMs that the entries are about; what hosts list does not count."""
    if only_metrics_in(entries):
        return set(map(_vm_id_of, map(_record_of, entries)))
    about_vms = MetricsBatch | VmStarted | VmStopped
    return {entry.record.vm_id for entry in entries if isinstance(entry.record, about_vms)}


def _sort_out(
    entry: JournalEntry, one_by_one: dict[str, list[JournalEntry]], beats: list[JournalEntry], effects: Effects
) -> None:
    """Records that are no samples: to their VM, or straight to what they change."""
    record = entry.record
    if isinstance(record, VmStarted):
        effects.tallies["starts"] += 1
        one_by_one[record.vm_id].append(entry)
    elif isinstance(record, VmStopped):
        effects.tallies["stops"] += 1
        one_by_one[record.vm_id].append(entry)
    elif isinstance(record, Heartbeat):
        effects.tallies["heartbeats"] += 1
        beats.append(entry)
    elif isinstance(record, PossibleGap):
        effects.tallies["possible_gaps"] += 1
        effects.reported_gaps.append(ReportedGap(entry.sequence, *record))
