"""Who is not heard any more, and why: silences of VMs and of instances, and VMs that have vanished.

The engine calls this while it writes: nothing here may fail, and nothing is done twice. All of it
goes by the sum of the ticks' lengths, in whole seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from billaged.aggregator import columns as c
from billaged.aggregator.arithmetic import Int64
from billaged.aggregator.book import Book
from billaged.aggregator.changes import LedgerWriter
from billaged.aggregator.columns import LISTED, RUNNING, SILENT, UNHEARD, VANISHED, WAS_LISTED, Columns
from billaged.aggregator.effects import Effects, InstanceRow, SilenceRow, canonical_json
from billaged.aggregator.instances import Instance, Instances
from billaged.aggregator.listings import Listings
from billaged.aggregator.thresholds import Thresholds
from billaged.aggregator.vanishing import vanish
from billaged.model.records import Heartbeat, JournalEntry, Resumed
from billaged.model.time import NANOS

# Each reason of a VM's silence, and its flag while that is open.
_FLAGS: Final = {
    "silent_vm": c.OPEN_SILENT_VM,
    "silent_host": c.OPEN_SILENT_HOST,
    "no_samples": c.OPEN_NO_SAMPLES,
    "vanished": VANISHED,
}
_ALL_VMS: Final = ""

Rows = NDArray[np.intp]
Nanos = TypeVar("Nanos", int, Int64, Int64 | int)


class Silence:
    """What the fold knows about who is heard. The thread that folds calls."""

    def __init__(self) -> None:
        self._instances = Instances()
        self._listings = Listings()
        # Whether the ledger's lists were taken up before their VMs had rows: what that left twice in memory goes.
        self._loaded = False

    def load(self, ledger: LedgerWriter) -> None:
        """Take up what the ledger holds; before any session is restored."""
        for instance_id, last_seen_ns, vm_ids, heard_seconds, silent in ledger.instances():
            instance = Instance(last_seen_ns, heard_seconds, silent=bool(silent), vm_ids=tuple(vm_ids))
            self._instances.restore(instance_id, instance)
            self._listings.restore(instance.vm_ids)
            self._loaded = True

    # --- what comes --------------------------------------------------------------

    def changes_lists(self, beat: Heartbeat) -> bool:
        """Whether this heartbeat lists other VMs than the one of its instance before.

        The engine folds everything before such a heartbeat first, so that what a session's opening
        finds listed does not depend on what is folded together.
        """
        return self._instances.changed_by(beat.instance_id, beat.active_vms)

    def beat(self, entry: JournalEntry, columns: Columns, passed_seconds: int, effects: Effects) -> None:
        """A heartbeat."""
        beat = entry.record
        if not isinstance(beat, Heartbeat):
            return
        change = self._instances.beat(
            beat.instance_id, entry.received_ns, passed_seconds, beat.active_vms, _own_strings(columns)
        )
        effects.instances[beat.instance_id] = self._row_of(beat.instance_id)
        for vm_id in change.removed:
            row = self._listings.remove(columns, vm_id)
            if row is not None and int(columns.flags[row]) & RUNNING:
                columns.unlisted_at[row] = passed_seconds
                columns.dirty[row] = True
        for vm_id in change.added:
            row = self._listings.add(columns, vm_id)
            if row is not None and int(columns.flags[row]) & RUNNING:
                columns.unlisted_at.pop(row, None)
                columns.flags[row] |= WAS_LISTED
                columns.dirty[row] = True

    def resumed(self, entry: JournalEntry, effects: Effects) -> None:
        """A span in which nothing could be taken."""
        span = entry.record
        if isinstance(span, Resumed) and span.up_ns > span.down_from_ns:
            effects.add_silence(SilenceRow(_ALL_VMS, span.down_from_ns, "billaged_down", span.up_ns, entry.sequence))

    def heard_again(self, columns: Columns, row: int, at_ns: int, effects: Effects) -> None:
        """A point was appended to an UNHEARD row, put at its newest instant, or begins a new timeline.

        Called before what the point changes is written to the row; the caller then clears the row's
        SILENCE_FLAGS, and records `returned`.
        """
        flags, vm_id, start_ns = int(columns.flags[row]), columns.vm_id[row], int(columns.last_time[row])
        for reason, flag in _FLAGS.items():
            if flags & flag:
                # The ledger has, or these effects have, the sequence that opened it.
                effects.add_silence(SilenceRow(vm_id, start_ns, reason, at_ns, 0))

    # --- looking -----------------------------------------------------------------

    def open_by_reason(self, columns: Columns) -> dict[str, int]:
        """How many running VMs have a silence of each reason now."""
        running = columns.flags[(columns.flags & (RUNNING | UNHEARD)) == (RUNNING | UNHEARD)]
        reasons = [reason for reason in _FLAGS if reason != "vanished"]
        return {reason: int(np.count_nonzero(running & _FLAGS[reason])) for reason in reasons}

    def silent_instances(self) -> int:
        """Those that list VMs still."""
        return sum(instance.silent for instance in self._instances)

    def heard_instances(self) -> int:
        """Those that are not silent."""
        return sum(not instance.silent for instance in self._instances)

    def oldest_heartbeat_ns(self) -> int | None:
        """When the instance was heard that was heard least recently; None where there is none."""
        return min((instance.last_seen_ns for instance in self._instances), default=None)

    # --- rows come and go --------------------------------------------------------

    def rows_added(self, columns: Columns, rows: Sequence[int]) -> None:
        """These rows are new: of VMs never seen, or taken up from the ledger (their flags and `unlisted_at` too)."""
        self._listings.adopt(columns, rows)

    def rows_leaving(self, columns: Columns, rows: Sequence[int]) -> None:
        """These rows are about to be evicted."""
        self._listings.release(columns, rows)

    def session_opened(self, columns: Columns, row: int) -> None:
        """The row's newest session is another one now; called after ``rows_added`` where both apply."""
        columns.flags[row] = int(columns.flags[row]) & ~WAS_LISTED
        columns.unlisted_at.pop(row, None)

    def ran(self, columns: Columns, row: int) -> None:
        """The row's newest session runs, or did after one of the records just folded; called after the others."""
        if int(columns.flags[row]) & (LISTED | WAS_LISTED) == LISTED:
            columns.flags[row] |= WAS_LISTED
            columns.dirty[row] = True

    # --- time passes -------------------------------------------------------------

    def tick(self, columns: Columns, passed_seconds: int, book: Book, entry: JournalEntry, effects: Effects) -> None:
        """After a tick has moved the buckets' clock and its length was added: who is silent now, who has vanished."""
        if self._loaded:
            self._listings.compact()
            self._instances.share(_own_strings(columns))
            self._loaded = False
        self._find_silent_instances(columns, passed_seconds, entry, effects)
        self._find_silent_vms(columns, passed_seconds, book.thresholds, entry, effects)
        self._find_vanished_vms(columns, passed_seconds - _seconds(book.rules.vanish_after_ns), entry, effects)

    def _find_silent_instances(
        self, columns: Columns, passed_seconds: int, entry: JournalEntry, effects: Effects
    ) -> None:
        silent = self._instances.fall_silent(passed_seconds)
        listed: set[int] = set()
        for instance_id in silent:
            effects.instances[instance_id] = self._row_of(instance_id)
            known = map(columns.row_of.get, self._instances[instance_id].vm_ids)
            listed.update([row for row in known if row is not None])
            self._instances.forget_if_idle(instance_id)
        if listed:
            rows = _sorted_rows(listed)
            rows = rows[(columns.flags[rows] & RUNNING) != 0]
            self._open("silent_host", columns, rows[self._on_silent_hosts(columns, rows)], entry, effects)

    def _find_silent_vms(
        self, columns: Columns, passed_seconds: int, thresholds: Thresholds, entry: JournalEntry, effects: Effects
    ) -> None:
        rows = _unheard(columns, passed_seconds - _seconds(thresholds.lowest_ns), RUNNING | SILENT, RUNNING)
        rows = rows[columns.heard[rows] <= passed_seconds - _seconds(thresholds.of(columns, rows))]
        if not len(rows):
            return
        columns.flags[rows] |= SILENT
        columns.dirty[rows] = True
        listed = (columns.flags[rows] & LISTED) != 0
        on_silent_host = np.zeros(len(rows), dtype=np.bool_)
        on_silent_host[listed] = self._on_silent_hosts(columns, rows[listed])
        self._open("no_samples", columns, rows[~listed], entry, effects)
        self._open("silent_host", columns, rows[on_silent_host], entry, effects)
        self._open("silent_vm", columns, rows[listed & ~on_silent_host], entry, effects)

    def _find_vanished_vms(self, columns: Columns, latest_seconds: int, entry: JournalEntry, effects: Effects) -> None:
        rows = _unheard(columns, latest_seconds, RUNNING | WAS_LISTED | LISTED, RUNNING | WAS_LISTED)
        for row in rows.tolist():
            # One that has no such time became unlisted while it did not run: before it was heard last.
            if columns.unlisted_at.get(row, 0) <= latest_seconds:
                columns.unlisted_at.pop(row, None)
                self._open("vanished", columns, np.array([row], dtype=np.intp), entry, effects)
                vanish(columns, row, entry, effects)

    def _on_silent_hosts(self, columns: Columns, rows: Rows) -> NDArray[np.bool_]:
        """Which of these rows, all of them listed, only silent instances list."""
        numbers = rows.tolist()
        vm_ids = [columns.vm_id[row] for row in numbers]
        silent = self._instances.silent_listings(vm_ids)
        if not silent:
            return np.zeros(len(rows), dtype=np.bool_)
        by_silent = np.array([silent.get(vm_id, 0) for vm_id in vm_ids], dtype=np.int64)
        by_any = np.array(self._listings.count_each(columns, numbers), dtype=np.int64)
        only_silent: NDArray[np.bool_] = by_silent == by_any
        return only_silent

    def _open(self, reason: str, columns: Columns, rows: Rows, entry: JournalEntry, effects: Effects) -> None:
        """Open a silence of this reason for rows that have none."""
        rows = rows[(columns.flags[rows] & _FLAGS[reason]) == 0]
        columns.flags[rows] |= UNHEARD | _FLAGS[reason]
        columns.dirty[rows] = True
        for row, last_ns in zip(rows.tolist(), columns.last_time[rows].tolist(), strict=True):
            vm_id = columns.vm_id[row]
            key = (vm_id, last_ns, reason)
            if key not in effects.silences:
                effects.silences[key] = SilenceRow(vm_id, last_ns, reason, None, entry.sequence)

    def _row_of(self, instance_id: str) -> InstanceRow:
        instance = self._instances[instance_id]
        active = canonical_json(instance.vm_ids)
        return InstanceRow(instance_id, instance.last_seen_ns, active, instance.heard_seconds, int(instance.silent))


def _own_strings(columns: Columns) -> Callable[[str], str]:
    """Of an id that has a row, the string that the columns have."""
    vm_id_of, row_of = columns.vm_id, columns.row_of
    return lambda vm_id: vm_id if (row := row_of.get(vm_id)) is None else vm_id_of[row]


def _seconds(nanos: Nanos) -> Nanos:
    """Whole seconds that are no less."""
    return -(-nanos // NANOS)


def _sorted_rows(rows: Iterable[int]) -> Rows:
    return np.array(sorted(rows), dtype=np.intp)


def _unheard(columns: Columns, latest_seconds: int, flags: int, wanted: int) -> Rows:
    """Rows that have these flags so, and were heard no later than that."""
    if latest_seconds < 0:
        return np.zeros(0, dtype=np.intp)
    return np.flatnonzero((columns.heard <= latest_seconds) & ((columns.flags & flags) == wanted))
