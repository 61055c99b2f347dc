"""The engine: folds journal entries in order, and gives the ledger what changed.

Single-threaded and without I/O: ``worker.py`` owns the thread, the lock and the
ledger. The result depends on the entries alone, not on how they were grouped.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from operator import itemgetter
from typing import Final, NamedTuple

import numpy as np

from billaged.aggregator.buckets import BucketClock
from billaged.aggregator.changes import Checkpoint, LedgerChanges, Row
from billaged.aggregator.columns import RUNNING, Columns
from billaged.aggregator.effects import Effects, FactKey, InstanceRow, Posting, ReportedGap, canonical_json
from billaged.aggregator.exchange import load_vm, store_vm
from billaged.aggregator.fold import Plan, apply, plan
from billaged.aggregator.persistence import fact_rows, restore, session_rows, superseded_row
from billaged.aggregator.postings import Postings
from billaged.aggregator.session import fold_samples, fold_start, fold_stop
from billaged.aggregator.summary import SummaryBatch, close_window, of_finals
from billaged.aggregator.vm import Context, Vm
from billaged.model.quantity import MemoryTime
from billaged.model.records import (
    SAMPLE_WIDTH,
    FoldRules,
    Heartbeat,
    JournalEntry,
    Kind,
    MetricsBatch,
    PossibleGap,
    Tick,
    VmStarted,
    VmStopped,
)
from billaged.model.time import INT64_MAX

_log = logging.getLogger("billaged.aggregator")

WRONG_OWNER: Final = "wrong_owner"
# A total, or the number of a VM's sessions, would not fit its column any more.
OVERFLOW: Final = "overflow"
FOLD_FAILED: Final = "fold_failed"
_ORDINAL_MAX: Final = 2**31 - 1
# Ended sessions stay at hand for late records; beyond this many the ledger keeps them.
_ENDED_KEPT: Final = 10_000


class _Outcome(NamedTuple):
    """What some entries do, computed and not yet written."""

    effects: Effects
    planned: Plan | None = None
    vms: Sequence[Vm] = ()
    finals: SummaryBatch | None = None


class Engine:
    """The fold's state and its rules."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.columns = Columns()
        self.position = checkpoint.position
        self.window_number = checkpoint.window_number
        self.window_start_ns = checkpoint.window_start_ns
        self.rules = checkpoint.rules or FoldRules()
        self._rules_seen = checkpoint.rules is not None
        self.clock: BucketClock = checkpoint.clock
        self.effects = Effects()
        self._postings = Postings()
        # The position of the last collect.
        self._collected = checkpoint.position
        # What was folded since the engine began, for operators; the ledger's tallies are for ever.
        self.samples_folded = 0
        self.gaps_seen = 0
        self.anomalies_seen = 0
        self.dead_letters_seen = 0

    # --- folding -----------------------------------------------------------------

    def fold(self, entries: Sequence[JournalEntry], *, replayed: bool = False) -> list[SummaryBatch]:
        """Fold entries in journal order; the summaries that became due."""
        summaries: list[SummaryBatch] = []
        at = 0
        only_metrics = _only_metrics(entries)
        for index in () if only_metrics else _barriers(entries):
            self._fold_run(entries[at:index], summaries, replayed, only_metrics=False)
            record = entries[index].record
            if isinstance(record, Tick):
                self._fold_tick(record, summaries, replayed)
            elif isinstance(record, FoldRules):
                self._change_rules(record)
            at = index + 1
        self._fold_run(entries[at:] if at else entries, summaries, replayed, only_metrics=only_metrics)
        if entries:
            self.position = entries[-1].sequence
        return summaries

    def _fold_tick(self, tick: Tick, summaries: list[SummaryBatch], replayed: bool) -> None:
        self.effects.tallies["ticks"] += 1
        self.clock = self.clock.after(tick, self.rules.bucket_ns)
        if tick.closes_interval:
            start = self.window_start_ns or tick.time_ns
            summaries.append(close_window(self.columns, start, tick.time_ns, replayed=replayed))
            self.window_number += 1
            self.window_start_ns = tick.time_ns
        elif not self.window_start_ns:
            self.window_start_ns = tick.time_ns

    def _change_rules(self, rules: FoldRules) -> None:
        # Postings in columns have one bucket length: those of the old one leave now.
        self._settle_postings()
        self.rules = rules
        self._rules_seen = True

    def _fold_run(
        self, entries: Sequence[JournalEntry], summaries: list[SummaryBatch], replayed: bool, *, only_metrics: bool
    ) -> None:
        if not entries:
            return
        try:
            outcome = self._compute(entries, replayed, only_metrics=only_metrics)
        except Exception:  # noqa: BLE001 - a bug in the fold must not stop the bill of everybody else
            if len(entries) > 1:
                # One of them is to blame. Nothing was written: look for it in either half.
                middle = len(entries) // 2
                for half in (entries[:middle], entries[middle:]):
                    self._fold_run(half, summaries, replayed, only_metrics=only_metrics)
                return
            _log.exception("journal entry %d cannot be folded; kept as a dead letter", entries[0].sequence)
            outcome = _Outcome(Effects())
            outcome.effects.bury(entries[0], FOLD_FAILED)
        # From here on nothing fails: what is half written could not be folded again.
        self._write(outcome)
        if outcome.finals is not None:
            summaries.append(outcome.finals)

    def _compute(self, entries: Sequence[JournalEntry], replayed: bool, *, only_metrics: bool) -> _Outcome:
        effects = Effects()
        metrics: Sequence[JournalEntry] = entries
        one_by_one: dict[str, list[JournalEntry]] = defaultdict(list)
        if not only_metrics:
            metrics = [entry for entry in entries if entry.kind is Kind.METRICS]
            for entry in entries:
                if entry.kind is not Kind.METRICS:
                    _sort_out(entry, one_by_one, effects)

        planned: Plan | None = None
        if metrics:
            batches: list[MetricsBatch] = list(map(_record_of, metrics))
            planned, left = plan(self.columns, self.rules, self.clock.closed_through_ns, batches, set(one_by_one))
            for index in left.tolist():
                one_by_one[batches[index].vm_id].append(metrics[index])
        if planned is not None:
            effects.tallies["samples"] += len(planned.steps.row)
            effects.newest_sample_ns = int(planned.steps.time.max())

        vms = [self._fold_vm(vm_id, mine, effects) for vm_id, mine in one_by_one.items()]
        finals = None
        if effects.finals:
            finals = of_finals(effects.finals, self.window_start_ns, replayed=replayed)
            effects.finals.clear()
        return _Outcome(effects, planned, vms, finals)

    def _write(self, outcome: _Outcome) -> None:
        effects = outcome.effects
        if outcome.planned is not None:
            apply(self.columns, outcome.planned)
            for block in outcome.planned.blocks:
                self._postings.add(block)
        for vm in outcome.vms:
            if vm.ordinal:
                store_vm(self.columns, vm)
        self.clock = self.clock.seeing(effects.newest_sample_ns)
        self.samples_folded += effects.tallies["samples"]
        self.anomalies_seen += len(effects.anomalies)
        self.dead_letters_seen += len(effects.dead_letters)
        self.gaps_seen += sum(gap is not None for gap in effects.gaps.values())
        self.effects.absorb(effects)

    def _fold_vm(self, vm_id: str, entries: list[JournalEntry], effects: Effects) -> Vm:
        """Each entry whole or not at all, so that it does not matter which ones come together."""
        vm = load_vm(self.columns, vm_id)
        entries.sort(key=lambda entry: entry.sequence)
        for entry in entries:
            if _surely_fits(vm, entry):
                if not self._fold_entry(vm, entry, effects):
                    effects.bury(entry, WRONG_OWNER)
                continue
            before, mine = vm.copy(), Effects()
            taken = self._fold_entry(vm, entry, mine)
            if max(vm.counters) > INT64_MAX or vm.ordinal > _ORDINAL_MAX:
                vm, mine = before, Effects()
                mine.bury(entry, OVERFLOW)
            elif not taken:
                mine.bury(entry, WRONG_OWNER)
            effects.absorb(mine)
        return vm

    def _fold_entry(self, vm: Vm, entry: JournalEntry, effects: Effects) -> bool:
        """Fold one entry into its VM. False where it belongs to another customer."""
        context = Context(entry.sequence, entry.received_ns, self.rules, self.clock.closed_through_ns, effects)
        record = entry.record
        if isinstance(record, MetricsBatch):
            values = iter(record.samples)
            samples = sorted(zip(*[values] * SAMPLE_WIDTH, strict=True), key=lambda sample: sample[0])
            if not fold_samples(vm, record.customer_id, samples, context):
                return False
            effects.newest_sample_ns = max(effects.newest_sample_ns, samples[-1][0] if samples else 0)
        elif isinstance(record, VmStarted):
            return fold_start(vm, record.customer_id, record.start_ns, context)
        elif isinstance(record, VmStopped):
            fold_stop(vm, record.stop_ns, context)
        return True

    # --- to and from the ledger --------------------------------------------------

    def waiting_rows(self) -> int:
        """Rows that wait for the ledger, roughly: to bound them."""
        return len(self._postings) + len(self.effects)

    def checkpoint(self) -> Checkpoint:
        rules = self.rules if self._rules_seen else None
        return Checkpoint(self.position, self.window_number, self.window_start_ns, rules, self.clock)

    def collect(self) -> LedgerChanges | None:
        """What changed since the last collect; None where no entry was folded."""
        if self.position == self._collected:
            return None
        columns, effects = self.columns, self.effects
        changes = LedgerChanges(self._collected, self.checkpoint())
        changes.sessions = [superseded_row(row) for row in effects.superseded]
        dirty = np.flatnonzero(columns.dirty)
        changes.sessions += session_rows(columns, dirty, self.window_number)
        columns.dirty[dirty] = False
        block = self._postings.take()
        if block is not None:
            changes.facts.append(fact_rows(columns, block, self.rules.bucket_ns))
        if effects.facts:
            changes.facts.append([_fact_row(*item) for item in effects.facts.items()])
        changes.corrections = [
            (sequence, *_fact_row(key, posting)) for (sequence, key), posting in effects.corrections.items()
        ]
        for key, gap in effects.gaps.items():
            if gap is None:
                changes.gaps_taken_back.append(key)
            else:
                changes.gaps.append((*gap[:6], *gap.amounts, gap.sequence))
        changes.anomalies = list(effects.anomalies)
        changes.dead_letters = [(*letter[:1], letter.kind.name.lower(), *letter[2:]) for letter in effects.dead_letters]
        changes.instances = list(effects.instances.values())
        changes.reported_gaps = list(effects.reported_gaps)
        changes.tallies = dict(effects.tallies)
        self.effects = Effects()
        self._collected = self.position
        return changes

    def unknown_vms(self, entries: Sequence[JournalEntry]) -> set[str]:
        """VMs of these entries that are not in the columns: the ledger may know them."""
        if _only_metrics(entries):
            ids = set(map(_vm_id_of, map(_record_of, entries)))
        else:
            about_vms = MetricsBatch | VmStarted | VmStopped
            ids = {entry.record.vm_id for entry in entries if isinstance(entry.record, about_vms)}
        return ids - self.columns.row_of.keys()

    def restore(self, rows: Sequence[Row]) -> None:
        """Take up sessions that the ledger holds."""
        restore(self.columns, rows, self.window_number)

    def evict_ended(self) -> None:
        """Right after a collect every row is on its way to the ledger: those of ended sessions may go."""
        columns = self.columns
        if len(columns.tails) > _ENDED_KEPT:
            columns.evict([row for row in columns.tails if columns.window_slot[row] < 0])

    def _settle_postings(self) -> None:
        block = self._postings.take()
        if block is not None:
            self.effects.add_facts(fact_rows(self.columns, block, self.rules.bucket_ns))

    # --- for readers, under the worker's lock ------------------------------------

    def running_vms(self) -> int:
        return int(np.count_nonzero(self.columns.flags & RUNNING))


_kind_of: Final = itemgetter(1)
_record_of: Final = itemgetter(5)
_vm_id_of: Final = itemgetter(0)


def _only_metrics(entries: Sequence[JournalEntry]) -> bool:
    """Nearly always: asked without a look at each entry by hand."""
    return list(map(_kind_of, entries)).count(Kind.METRICS) == len(entries)


def _barriers(entries: Sequence[JournalEntry]) -> list[int]:
    """Where ticks and rules stand: what comes before and after them is folded apart."""
    return [index for index, entry in enumerate(entries) if entry.kind is Kind.TICK or entry.kind is Kind.RULES]


def _sort_out(entry: JournalEntry, one_by_one: dict[str, list[JournalEntry]], effects: Effects) -> None:
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
        active = canonical_json(sorted(set(record.active_vms)))
        effects.instances[record.instance_id] = InstanceRow(record.instance_id, entry.received_ns, active)
    elif isinstance(record, PossibleGap):
        effects.tallies["possible_gaps"] += 1
        effects.reported_gaps.append(ReportedGap(entry.sequence, *record))


def _surely_fits(vm: Vm, entry: JournalEntry) -> bool:
    """Whether the VM's totals would fit even if the entry billed all that it speaks of."""
    record = entry.record
    most = max(vm.counters)
    if isinstance(record, MetricsBatch):
        most += sum(record.samples) - sum(record.samples[::SAMPLE_WIDTH])
    elif vm.origin is not None:
        most += max(vm.origin)
    return most <= INT64_MAX and vm.ordinal < _ORDINAL_MAX


def _fact_row(key: FactKey, posting: Posting) -> Row:
    memory = MemoryTime.of_byte_nanos(posting.memory_byte_nanos)
    return (*key, posting.customer_id, *posting.amounts, *memory, *posting[3:])
