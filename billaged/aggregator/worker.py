"""The thread that owns the fold.

It takes entries in journal order, folds them under the lock, gives out what became
due, and commits to the ledger at most once a flush interval. The lock guards the
engine against readers; it is never held across I/O.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from billaged.aggregator.changes import (
    ANOMALY_COLUMNS,
    DEAD_LETTER_COLUMNS,
    SESSION_COLUMNS,
    SILENCE_COLUMNS,
    LedgerChanges,
    LedgerWriter,
)
from billaged.aggregator.columns import RUNNING, Columns
from billaged.aggregator.engine import Engine
from billaged.aggregator.feeding import feed, take_up
from billaged.aggregator.glance import Glance
from billaged.aggregator.summary import SummarySink
from billaged.model.errors import BillagedError
from billaged.model.records import FoldRules, JournalEntry, VmStarted, VmStopped
from billaged.model.time import NANOS, Clock

_log = logging.getLogger("billaged.aggregator")

# Fold at most this many entries at once, so that readers wait some milliseconds at most.
_FOLD_ENTRIES: Final = 8_192
# What may be slow: starts and stops in the past move what is kept after them, and samples there are walked one by one.
# So many of the one, so many payload bytes of the other: whoever asks whether the fold gets on hears it in time.
_FOLD_BOUNDS: Final = 16
_FOLD_BYTES: Final = 1 << 20
# Wait this long for company before folding fewer than this: small groups cost most.
_GATHER_SECONDS: Final = 0.02
_GATHER_ENTRIES: Final = 512
# Flush early when this many rows wait for the ledger.
_FLUSH_ROWS: Final = 200_000
# A flush is followed by at least this many times its own duration without one.
_FLUSH_REST: Final = 3


class AggregatorStatus(NamedTuple):
    """What operators want to know, at one moment."""

    active_vms: int
    known_vms: int
    customers: int
    position: int
    ledger_position: int
    samples_folded: int
    gaps_seen: int
    anomalies_seen: int
    dead_letters_seen: int
    # Running VMs that are not heard, by reason, and instances that list VMs and are silent.
    silent_vms: dict[str, int]
    silent_instances: int
    # And those that are heard; when the one was heard of them all that was heard least recently.
    heard_instances: int
    oldest_heartbeat_ns: int | None
    queued_entries: int
    closed_through_ns: int


class FoldObserver(Protocol):
    """Who wants to know how the fold does. Called by its thread, which must not wait."""

    def folded(self, entries: int, seconds: float) -> None:
        """The next so many entries have been folded; that took so long."""

    def flushed(self, changes: LedgerChanges, seconds: float) -> None:
        """These changes are in the ledger; the commit took so long."""


class Aggregator:
    """Owns the engine and its thread. ``put`` is the way in, ``owner_of`` and ``status`` the ways to look."""

    def __init__(
        self,
        ledger: LedgerWriter,
        sink: SummarySink,
        clock: Clock,
        flush_interval_ns: int,
        on_fatal: Callable[[BaseException], None],
        observer: FoldObserver | None = None,
    ) -> None:
        self._ledger = ledger
        self._sink = sink
        self._clock = clock
        self._flush_interval_ns = flush_interval_ns
        self._on_fatal = on_fatal
        self._observer = observer
        self._engine = Engine(ledger.checkpoint())
        # Guards the engine: folding and collecting write, status reads.
        self._lock = threading.Lock()
        self._status = Glance(self._lock, self._read_status)
        self._by_customer = Glance(self._lock, self._engine.running_by_customer)
        # Guards the queue below; waits for entries, flushes and the end.
        self._wake = threading.Condition()
        self._queue: deque[Sequence[JournalEntry]] = deque()
        self._queued = 0
        self._stopping = False
        # Entries folded since the start, and their payloads' bytes; only the thread writes them.
        self.folded_entries = 0
        self.folded_bytes = 0
        self._ledger_position = self._engine.position
        self._flush_due_ns = 0
        self._thread = threading.Thread(target=self._run, name="aggregator")

    # --- before the thread runs --------------------------------------------------

    def load(self) -> None:
        """Take up what runs, and who is heard, from the ledger."""
        take_up(self._engine, self._ledger)

    def replay(self, groups: Iterable[Sequence[JournalEntry]]) -> int:
        """Fold what the journal holds past the ledger's position; the number of entries."""
        count = 0
        for entries in groups:
            count += len(entries)
            self._fold(entries, replayed=True)
            if self._engine.waiting_rows() > _FLUSH_ROWS:
                self.flush()
        self.flush()
        return count

    def start(self) -> None:
        for first in (self._status, self._by_customer):
            first.look()
        self._thread.start()

    # --- the way in --------------------------------------------------------------

    def put(self, entries: Sequence[JournalEntry]) -> None:
        """Hand over durable entries, in journal order. Never blocks: the intake bounds what is in flight."""
        with self._wake:
            self._queue.append(entries)
            self._queued += len(entries)
            self._wake.notify()

    def stop(self) -> None:
        """Fold and flush everything handed over, then end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    # --- looking -----------------------------------------------------------------

    @property
    def position(self) -> int:
        return self._engine.position

    @property
    def rules(self) -> FoldRules | None:
        """The rules in force; None where no record has set them yet."""
        return self._engine.checkpoint().rules

    def owner_of(self, vm_id: str) -> str | None:
        """The customer of a VM's running session, as far as it is folded; None where there is none.

        Asked for every sample, so it takes no lock: while the fold writes that very
        VM the answer may be a moment old or ahead. Who must be sure waits until what
        came before is folded, and asks again.
        """
        columns = self._engine.columns
        row = columns.row_of.get(vm_id)
        if row is None or not columns.flags[row] & RUNNING:
            return None
        customer_id: str = columns.customer_ids[columns.customer[row]]
        return customer_id

    def last_owner_of(self, vm_id: str) -> str | None:
        """The customer of a VM's newest session, ended or not, as far as it is folded.

        May ask the ledger: not to be called on the event loop.
        """
        columns = self._engine.columns
        row = columns.row_of.get(vm_id)
        if row is not None:
            customer_id: str = columns.customer_ids[columns.customer[row]]
            return customer_id
        sessions = self._ledger.newest_sessions((vm_id,))
        return str(sessions[0][SESSION_COLUMNS.index("customer_id")]) if sessions else None

    def known_vms(self) -> int:
        """VMs in memory. Needs no lock: one number."""
        return len(self._engine.columns)

    def knows(self, vm_id: str) -> bool:
        return vm_id in self._engine.columns.row_of

    def status(self) -> AggregatorStatus:
        """As it is, or was a moment ago where the fold is at something long."""
        return self._status.look()

    def _read_status(self) -> AggregatorStatus:
        engine = self._engine
        return AggregatorStatus(
            engine.running_vms(),
            len(engine.columns),
            len(engine.columns.customer_ids),
            engine.position,
            self._ledger_position,
            engine.samples_folded,
            engine.gaps_seen,
            engine.anomalies_seen,
            engine.dead_letters_seen,
            engine.silence.open_by_reason(engine.columns),
            engine.silence.silent_instances(),
            engine.silence.heard_instances(),
            engine.silence.oldest_heartbeat_ns(),
            self._queued,
            engine.clock.closed_through_ns,
        )

    def running_by_customer(self) -> Mapping[str, int]:
        """How many running VMs each customer has; those that have some."""
        return self._by_customer.look()

    @property
    def progress(self) -> int:
        """Rises while the fold gets on, also within one entry."""
        return self.folded_entries + self._engine.progress.points

    # --- the thread --------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._ended():
                for entries in _pieces(self._next(), self._engine.columns):
                    self._fold(entries)
                    self.folded_bytes += sum([len(entry.payload) for entry in entries])
                    self.folded_entries += len(entries)
                    if self._clock.monotonic_nanos() >= self._flush_due_ns or self._engine.waiting_rows() > _FLUSH_ROWS:
                        self.flush()
            self.flush()
        except BaseException as error:
            self._on_fatal(error)
            if not isinstance(error, BillagedError):
                raise

    def _ended(self) -> bool:
        with self._wake:
            return self._stopping and not self._queue

    def _next(self) -> list[JournalEntry]:
        """Entries to fold; none where a flush has come due, or the end."""
        with self._wake:
            while not self._queue and not self._stopping:
                left = None
                if self._engine.position != self._ledger_position:
                    left = (self._flush_due_ns - self._clock.monotonic_nanos()) / NANOS
                    if left <= 0:
                        return []
                self._wake.wait(left)
            if self._queued < _GATHER_ENTRIES and not self._stopping:
                self._wake.wait_for(lambda: self._queued >= _GATHER_ENTRIES or self._stopping, _GATHER_SECONDS)
            entries: list[JournalEntry] = []
            while self._queue and len(entries) < _FOLD_ENTRIES:
                entries.extend(self._queue.popleft())
            self._queued -= len(entries)
            return entries

    def _fold(self, entries: Sequence[JournalEntry], *, replayed: bool = False) -> None:
        began = self._clock.monotonic_nanos()
        for batch in feed(self._engine, self._ledger, entries, replayed=replayed, lock=self._lock):
            self._sink.publish(batch)
        if self._observer is not None and entries and not replayed:
            self._observer.folded(len(entries), (self._clock.monotonic_nanos() - began) / NANOS)

    def flush(self) -> None:
        """Commit what was folded. Called by the thread, or before it runs."""
        began = self._clock.monotonic_nanos()
        # Only this thread changes the engine, so it may read without the lock; evicting is a change.
        changes = self._engine.collect()
        if changes is not None:
            self._ledger.commit(changes)
            _tell_of_trouble(changes)
            self._ledger_position = changes.checkpoint.position
            if self._observer is not None:
                self._observer.flushed(changes, (self._clock.monotonic_nanos() - began) / NANOS)
        # Only now: who asks for a VM finds it here or in the ledger.
        with self._lock:
            self._engine.evict_ended()
        # What is seen during a long fold is no older than the flush before it.
        for seen in (self._status, self._by_customer):
            seen.look()
        ended = self._clock.monotonic_nanos()
        self._flush_due_ns = ended + max(self._flush_interval_ns, _FLUSH_REST * (ended - began))


def _pieces(entries: Sequence[JournalEntry], columns: Columns) -> Iterator[Sequence[JournalEntry]]:
    """In order, at least one; the bill does not depend on where they are cut."""
    begun, bounds, size = 0, 0, 0
    for index, entry in enumerate(entries):
        record = entry.record
        if isinstance(record, VmStarted):
            bounds += _is_past(record.vm_id, record.start_ns, columns)
        elif isinstance(record, VmStopped):
            bounds += _is_past(record.vm_id, record.stop_ns, columns)
        size += len(entry.payload)
        if bounds >= _FOLD_BOUNDS or size >= _FOLD_BYTES:
            yield entries[begun : index + 1]
            begun, bounds, size = index + 1, 0, 0
    if begun < len(entries) or not entries:
        yield entries[begun:]


def _is_past(vm_id: str, time_ns: int, columns: Columns) -> bool:
    """Whether this VM is in memory with something newer. A fleet that starts is folded as one."""
    row = columns.row_of.get(vm_id)
    return row is not None and time_ns < int(columns.last_time[row])


def _tell_of_trouble(changes: LedgerChanges) -> None:
    """One line a flush for what somebody may ask about; the ledger has each of them."""
    kinds = Counter(row[ANOMALY_COLUMNS.index("kind")] for row in changes.anomalies)
    if kinds:
        _log.warning("anomalies recorded", extra={"kinds": dict(kinds)})
    reason, end = map(SILENCE_COLUMNS.index, ("reason", "end_ns"))
    silences = Counter(row[reason] for row in changes.silences if row[end] is None)
    if silences:
        _log.warning("VMs are not heard any more", extra={"reasons": dict(silences)})
    reasons = Counter(row[DEAD_LETTER_COLUMNS.index("reason")] for row in changes.dead_letters)
    if reasons:
        _log.warning("requests that could not be placed are kept as dead letters", extra={"reasons": dict(reasons)})
