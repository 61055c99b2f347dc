"""The engine: folds journal entries in order, and gives the ledger what changed.

Single-threaded and without I/O: ``worker.py`` owns the thread, the lock and the
ledger. The result depends on the entries alone, not on how they were grouped.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from billaged.aggregator.book import Book
from billaged.aggregator.buckets import BucketClock
from billaged.aggregator.changes import Checkpoint, LedgerChanges, Row
from billaged.aggregator.collecting import collect_effects
from billaged.aggregator.columns import RUNNING, Columns
from billaged.aggregator.computing import NEEDED_VMS_MAX, Known, Outcome, compute, only_metrics_in, vm_ids_of
from billaged.aggregator.effects import Effects
from billaged.aggregator.entries import Moment
from billaged.aggregator.exchange import store_vm
from billaged.aggregator.fold import apply
from billaged.aggregator.persistence import fact_rows, restore, session_rows
from billaged.aggregator.postings import Postings
from billaged.aggregator.progress import Progress
from billaged.aggregator.silence import Silence
from billaged.aggregator.summary import SummaryBatch, close_window, of_finals
from billaged.aggregator.timeline import KEPT_NANOS
from billaged.aggregator.timelines import LoadedTimelines, Timelines
from billaged.aggregator.vm import Vm
from billaged.model.records import FoldRules, Heartbeat, JournalEntry, Resumed, Tick
from billaged.model.time import INT64_MAX, NANOS

_log = logging.getLogger("billaged.aggregator")

FOLD_FAILED: Final = "fold_failed"
# Ended sessions stay at hand for late records; beyond this many the ledger keeps them.
_ENDED_KEPT: Final = 10_000
_ALONE: Final = (Tick, FoldRules, Resumed)


class Folded(NamedTuple):
    """``wanted`` are VMs whose kept instants are needed before the rest of the entries can be folded."""

    summaries: list[SummaryBatch]
    wanted: Sequence[str] = ()


class Engine:
    """The fold's state and its rules."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.columns = Columns()
        self.position = checkpoint.position
        self.chain = checkpoint.chain
        self.window_number = checkpoint.window_number
        self.window_start_ns = checkpoint.window_start_ns
        self._book = Book(checkpoint.book, checkpoint.rules or FoldRules())
        self._rules_seen = checkpoint.rules is not None
        self.progress = Progress()
        self.clock: BucketClock = checkpoint.clock
        # The lengths of all ticks.
        self.passed_ns = checkpoint.passed_ns
        self.silence = Silence()
        self.effects = Effects()
        self._postings = Postings()
        self._timelines = Timelines()
        # VMs whose kept instants the entries that wait to be folded need.
        self._needing: Sequence[str] = ()
        # The position of the last collect.
        self._collected = checkpoint.position
        # What was folded since the engine began, for operators; the ledger's tallies are for ever.
        self.samples_folded = 0
        self.gaps_seen = 0
        self.anomalies_seen = 0
        self.dead_letters_seen = 0

    @property
    def rules(self) -> FoldRules:
        """Those in force."""
        return self._book.rules

    @property
    def passed_seconds(self) -> int:
        return self.passed_ns // NANOS

    # --- folding -----------------------------------------------------------------

    def fold(self, entries: Sequence[JournalEntry], *, replayed: bool = False) -> Folded:
        """Fold entries in journal order; the summaries that became due.

        Where it needs VMs' kept instants it stops and says which: give them to ``restore_timelines``, and call
        again with the same entries.
        """
        summaries: list[SummaryBatch] = []
        if self._needing:
            entries = [entry for entry in entries if entry.sequence > self.position]
            self._needing = ()
        if only_metrics_in(entries):
            return Folded(summaries, self._fold_run(entries, summaries, replayed, only_metrics=True))
        at = 0
        for index in self._barriers(entries):
            if wanted := self._fold_run(entries[at:index], summaries, replayed, only_metrics=False):
                return Folded(summaries, wanted)
            self._fold_alone(entries[index], summaries, replayed)
            at = index + 1
        return Folded(summaries, self._fold_run(entries[at:], summaries, replayed, only_metrics=False))

    def _barriers(self, entries: Sequence[JournalEntry]) -> Iterator[int]:
        """Where entries stand before which all must be folded; found while that is done."""
        for index, entry in enumerate(entries):
            record = entry.record
            if isinstance(record, _ALONE) or (isinstance(record, Heartbeat) and self.silence.changes_lists(record)):
                yield index

    def _fold_alone(self, entry: JournalEntry, summaries: list[SummaryBatch], replayed: bool) -> None:
        record = entry.record
        if isinstance(record, Tick):
            self._fold_tick(entry, record, summaries, replayed)
        elif isinstance(record, FoldRules):
            self._change_rules(record)
        elif isinstance(record, Resumed):
            self.silence.resumed(entry, self.effects)
        elif isinstance(record, Heartbeat):
            self.effects.tallies["heartbeats"] += 1
            self.silence.beat(entry, self.columns, self.passed_seconds, self.effects)
        self.position, self.chain = entry.sequence, entry.chain

    def _fold_tick(self, entry: JournalEntry, tick: Tick, summaries: list[SummaryBatch], replayed: bool) -> None:
        self.effects.tallies["ticks"] += 1
        self.clock = self.clock.after(tick, self.rules.bucket_ns)
        self.passed_ns += tick.length_ns
        anomalies = len(self.effects.anomalies)
        self.silence.tick(self.columns, self.passed_seconds, self._book, entry, self.effects)
        self.anomalies_seen += len(self.effects.anomalies) - anomalies
        if (finals := self._finals_of(self.effects, replayed)) is not None:
            summaries.append(finals)
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
        self._rules_seen = True
        self._book.put_in_force(rules)

    def _fold_run(
        self, entries: Sequence[JournalEntry], summaries: list[SummaryBatch], replayed: bool, *, only_metrics: bool
    ) -> Sequence[str]:
        """Fold entries between two barriers. VMs whose kept instants are needed first: then the rest is not folded."""
        if not entries:
            return ()
        try:
            outcome = self._compute(entries, replayed, only_metrics=only_metrics)
        except MemoryError:
            # Not the entry's fault: another process folds it.
            raise
        except Exception:  # noqa: BLE001 - a bug in the fold must not stop the bill of everybody else
            if len(entries) > 1:
                # One of them is to blame. Nothing was written: look for it in either half.
                return self._fold_halves(entries, summaries, replayed, only_metrics=only_metrics)
            _log.exception("journal entry %d cannot be folded; kept as a dead letter", entries[0].sequence)
            outcome = Outcome(Effects())
            outcome.effects.bury(entries[0], FOLD_FAILED)
        if outcome.wanted:
            if len(outcome.needing) > NEEDED_VMS_MAX and len(entries) > 1:
                # So many at once might take too much memory.
                return self._fold_halves(entries, summaries, replayed, only_metrics=only_metrics)
            self._needing = outcome.needing
            return outcome.wanted
        # From here on nothing fails: what is half written could not be folded again.
        self._write(outcome)
        self.position, self.chain = entries[-1].sequence, entries[-1].chain
        if outcome.finals is not None:
            summaries.append(outcome.finals)
        return ()

    def _fold_halves(
        self, entries: Sequence[JournalEntry], summaries: list[SummaryBatch], replayed: bool, *, only_metrics: bool
    ) -> Sequence[str]:
        middle = len(entries) // 2
        for half in (entries[:middle], entries[middle:]):
            if wanted := self._fold_run(half, summaries, replayed, only_metrics=only_metrics):
                return wanted
        return ()

    def _compute(self, entries: Sequence[JournalEntry], replayed: bool, *, only_metrics: bool) -> Outcome:
        known = Known(self.columns, self._moment(), self._timelines, self.effects)
        outcome = compute(entries, known, only_metrics=only_metrics)
        return outcome._replace(finals=self._finals_of(outcome.effects, replayed))

    def _moment(self) -> Moment:
        latest_ns = self.clock.latest_ns
        horizon_ns = -INT64_MAX if latest_ns is None else latest_ns - KEPT_NANOS
        closed_through_ns = self.clock.closed_through_ns
        return Moment(self._book, closed_through_ns, horizon_ns, self.passed_seconds, self.progress)

    def _finals_of(self, effects: Effects, replayed: bool) -> SummaryBatch | None:
        if not effects.finals:
            return None
        finals = of_finals(effects.finals, self.window_start_ns, replayed=replayed)
        effects.finals.clear()
        return finals

    def _write(self, outcome: Outcome) -> None:
        effects = outcome.effects
        if outcome.planned is not None:
            apply(self.columns, outcome.planned, self._book.number, self.passed_seconds)
            for block in outcome.planned.blocks:
                self._postings.add(block)
        for beat in outcome.beats:
            self.silence.beat(beat, self.columns, self.passed_seconds, effects)
        for vm_id, at_ns in effects.heard_again:
            self.silence.heard_again(self.columns, self.columns.row_of[vm_id], at_ns, effects)
        effects.heard_again.clear()
        for vm in outcome.vms:
            self._write_vm(vm)
        self.clock = self.clock.seeing(effects.newest_sample_ns)
        self.samples_folded += effects.tallies["samples"]
        self.anomalies_seen += len(effects.anomalies)
        self.dead_letters_seen += len(effects.dead_letters)
        self.gaps_seen += sum(gap is not None for gap in effects.gaps.values())
        self.effects.absorb(effects)

    def _write_vm(self, vm: Vm) -> None:
        columns = self.columns
        is_new = vm.vm_id not in columns.row_of
        if is_new and vm.vm_id not in self._timelines:
            self._timelines.is_new(vm.vm_id)
        self._timelines.put_back(vm)
        if vm.session is None:
            return
        row = store_vm(columns, vm)
        if vm.heard_seconds is not None:
            columns.heard[row] = vm.heard_seconds
        if is_new:
            self.silence.rows_added(columns, (row,))
        if vm.has_another_session:
            self.silence.session_opened(columns, row)
        if vm.has_run:
            self.silence.ran(columns, row)

    # --- to and from the ledger --------------------------------------------------

    def waiting_rows(self) -> int:
        """Rows that wait for the ledger, roughly: to bound them."""
        return len(self._postings) + len(self.effects)

    def checkpoint(self) -> Checkpoint:
        rules, book = (self.rules, tuple(self._book.every)) if self._rules_seen else (None, ())
        return Checkpoint(
            self.position,
            self.window_number,
            self.window_start_ns,
            rules,
            self.clock,
            self.chain,
            self.passed_ns,
            book,
        )

    def collect(self) -> LedgerChanges | None:
        """What changed since the last collect; None where no entry was folded."""
        if self.position == self._collected:
            return None
        columns = self.columns
        changes = LedgerChanges(self._collected, self.checkpoint())
        dirty = np.flatnonzero(columns.dirty)
        changes.sessions = session_rows(columns, dirty, self.window_number)
        columns.dirty[dirty] = False
        block = self._postings.take()
        if block is not None:
            changes.facts.append(fact_rows(columns, block, self.rules.bucket_ns))
        collect_effects(self.effects, changes)
        self.effects = Effects()
        self._timelines.clear()
        self._collected = self.position
        return changes

    def unknown_vms(self, entries: Sequence[JournalEntry]) -> set[str]:
        """VMs of these entries that are not in the columns: the ledger may know them."""
        unknown = vm_ids_of(entries) - self.columns.row_of.keys()
        return {vm_id for vm_id in unknown if vm_id not in self._timelines} if unknown else unknown

    def restore(self, rows: Sequence[Row]) -> None:
        """Take up sessions that the ledger holds."""
        self.silence.rows_added(self.columns, restore(self.columns, rows, self.window_number))

    def expect_timelines(self, vm_ids: Collection[str]) -> None:
        """Of these VMs the ledger holds no session, but kept instants."""
        self._timelines.expect(vm_ids)

    def restore_timelines(self, loaded: LoadedTimelines) -> None:
        """Take up what the ledger holds of VMs' timelines."""
        self._timelines.restore(loaded, self.effects, self._needing)

    def evict_ended(self) -> None:
        """Right after a collect every row is on its way to the ledger: those of ended sessions may go."""
        columns = self.columns
        if len(columns.ended) > _ENDED_KEPT:
            rows = [row for row in columns.ended if columns.window_slot[row] < 0]
            self.silence.rows_leaving(columns, rows)
            columns.evict(rows)

    def _settle_postings(self) -> None:
        block = self._postings.take()
        if block is not None:
            self.effects.add_facts(fact_rows(self.columns, block, self.rules.bucket_ns))

    # --- for readers, under the worker's lock ------------------------------------

    def running_vms(self) -> int:
        return int(np.count_nonzero(self.columns.flags & RUNNING))

    def running_by_customer(self) -> dict[str, int]:
        columns = self.columns
        counts = np.bincount(columns.customer[(columns.flags & RUNNING) != 0]).tolist()
        return {columns.customer_ids[number]: count for number, count in enumerate(counts) if count}
