"""What folding changes, beside the state itself: rows on their way to the ledger.

The ledger reads these records; it never reaches back.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from billaged.model.quantity import MemoryTime
from billaged.model.records import JournalEntry, Kind

if TYPE_CHECKING:
    from billaged.aggregator.instant import Kept
    from billaged.aggregator.session import Session

Amounts = tuple[int, int, int, int, int]
NO_AMOUNTS: Amounts = (0, 0, 0, 0, 0)
# What a row takes while it waits, roughly.
_ROW_BYTES: Final = 512
# And in such rows, what is kept of a VM while it waits; most have one or two instants.
_KEPT_ROWS: Final = 4


class FactKey(NamedTuple):
    bucket_start_ns: int
    bucket_ns: int
    vm_id: str
    ordinal: int


class Posting(NamedTuple):
    """Usage added to a bucket of a session; negative where it is taken back."""

    customer_id: str
    amounts: Amounts
    memory_byte_nanos: int
    measured_ns: int
    samples: int
    # The highest sampled memory; a peak never goes down.
    memory_peak_bytes: int

    def __add__(self, other: object) -> Posting:
        if not isinstance(other, Posting):
            return NotImplemented
        return Posting(
            self.customer_id,
            tuple(map(int.__add__, self.amounts, other.amounts)),  # type: ignore[arg-type]
            self.memory_byte_nanos + other.memory_byte_nanos,
            self.measured_ns + other.measured_ns,
            self.samples + other.samples,
            max(self.memory_peak_bytes, other.memory_peak_bytes),
        )


class GapRow(NamedTuple):
    vm_id: str
    ordinal: int
    start_ns: int
    end_ns: int
    # step: between two samples; start: before the first; stop: after the last.
    kind: str
    customer_id: str
    amounts: Amounts
    # The journal sequence that closed it.
    sequence: int


class Anomaly(NamedTuple):
    """Something a customer or an operator may ask about. ``detail`` is canonical JSON."""

    sequence: int
    item: int
    kind: str
    vm_id: str
    at_ns: int
    ordinal: int
    detail: str


class DeadLetter(NamedTuple):
    sequence: int
    kind: Kind
    reason: str
    received_ns: int
    caller: str
    payload: bytes


class FinalSummary(NamedTuple):
    """A session that ended: its totals, and those at the beginning of its last window."""

    vm_id: str
    customer_id: str
    ordinal: int
    session_start_ns: int
    session_end_ns: int
    window_end_ns: int
    window_base: tuple[int, ...]
    totals: tuple[int, ...]


class InstanceRow(NamedTuple):
    instance_id: str
    last_seen_ns: int
    active_vms: str
    # When it was heard, in seconds of ticks.
    heard_seconds: int
    silent: int


class SilenceRow(NamedTuple):
    """Somebody was not heard: a VM, or all of them (an empty id). ``end_ns`` is None while that lasts."""

    vm_id: str
    start_ns: int
    reason: str
    end_ns: int | None
    # The journal sequence that opened it.
    sequence: int


class ReportedGap(NamedTuple):
    sequence: int
    vm_id: str
    last_sent_ns: int
    resume_ns: int


def canonical_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


@dataclass(slots=True)
class KeptChanges:
    """What is new among the kept instants of a VM's current timeline; None for one that is kept no more."""

    timeline: int
    by_time: dict[int, Kept | None] = field(default_factory=dict)


@dataclass(slots=True)
class Correction:
    posting: Posting
    causes: set[str]


@dataclass(slots=True)
class Effects:
    """Collected between two flushes by exact, one-at-a-time code; columns have their own way."""

    facts: dict[FactKey, Posting] = field(default_factory=dict)
    corrections: dict[tuple[int, FactKey], Correction] = field(default_factory=dict)
    # By (vm_id, ordinal, start): None takes a gap of the ledger away again.
    gaps: dict[tuple[str, int, int], GapRow | None] = field(default_factory=dict)
    anomalies: list[Anomaly] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    # Sessions that are not their VM's newest, by VM and ordinal.
    superseded: dict[str, dict[int, Session]] = field(default_factory=dict)
    kept: dict[str, KeptChanges] = field(default_factory=dict)
    instances: dict[str, InstanceRow] = field(default_factory=dict)
    # By (vm_id, start_ns, reason).
    silences: dict[tuple[str, int, str], SilenceRow] = field(default_factory=dict)
    reported_gaps: list[ReportedGap] = field(default_factory=list)
    tallies: Counter[str] = field(default_factory=Counter)
    finals: list[FinalSummary] = field(default_factory=list)
    # VMs (and when) of which a point came that ends their silences.
    heard_again: list[tuple[str, int]] = field(default_factory=list)
    # The latest time of a sample that was taken, counted or not.
    newest_sample_ns: int = 0
    # Bytes that dead letters hold.
    payload_bytes: int = 0

    def post(self, sequence: int, key: FactKey, posting: Posting, closed_through_ns: int, cause: str) -> None:
        """Add to the bucket's fact, or beside it once the bucket is closed."""
        if key.bucket_start_ns + key.bucket_ns <= closed_through_ns:
            correction = self.corrections.get((sequence, key))
            if correction is None:
                self.corrections[sequence, key] = Correction(posting, {cause})
            else:
                correction.posting += posting
                correction.causes.add(cause)
        else:
            fact = self.facts.get(key)
            self.facts[key] = posting if fact is None else fact + posting

    def supersede(self, session: Session) -> None:
        self.superseded.setdefault(session.vm_id, {})[session.ordinal] = session

    def keep(self, vm_id: str, timeline: int, time_ns: int, kept: Kept | None) -> None:
        changes = self.kept.get(vm_id)
        if changes is None or changes.timeline != timeline:
            # Of an older timeline nothing is needed any more.
            changes = self.kept[vm_id] = KeptChanges(timeline)
        changes.by_time[time_ns] = kept

    def add_facts(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Add fact rows in the ledger's order of columns."""
        for row in rows:
            key, customer_id, values = FactKey(*row[:4]), row[4], row[5:]
            memory = MemoryTime(values[5], values[6]).byte_nanos
            posting = Posting(customer_id, tuple(values[:5]), memory, values[7], values[8], values[9])
            fact = self.facts.get(key)
            self.facts[key] = posting if fact is None else fact + posting

    def add_silence(self, silence: SilenceRow) -> None:
        """One that opened, or has an end now. The same again changes nothing."""
        key = (silence.vm_id, silence.start_ns, silence.reason)
        before = self.silences.get(key)
        if before is None:
            self.silences[key] = silence
        elif before.end_ns is None:
            self.silences[key] = before._replace(end_ns=silence.end_ns)

    def bury(self, entry: JournalEntry, reason: str) -> None:
        """An entry that cannot be folded: kept as it came, and why."""
        self.tallies["dead_letters"] += 1
        self.payload_bytes += len(entry.payload)
        self.dead_letters.append(
            DeadLetter(entry.sequence, entry.kind, reason, entry.received_ns, entry.caller, entry.payload)
        )

    def absorb(self, later: Effects) -> None:
        """Add what later entries changed."""
        for key, posting in later.facts.items():
            fact = self.facts.get(key)
            self.facts[key] = posting if fact is None else fact + posting
        # A correction belongs to one journal sequence, so to one entry.
        self.corrections.update(later.corrections)
        self.gaps.update(later.gaps)
        self.anomalies += later.anomalies
        self.dead_letters += later.dead_letters
        for vm_id, sessions in later.superseded.items():
            self.superseded.setdefault(vm_id, {}).update(sessions)
        for vm_id, changes in later.kept.items():
            known = self.kept.get(vm_id)
            if known is None or known.timeline != changes.timeline:
                self.kept[vm_id] = changes
            else:
                known.by_time.update(changes.by_time)
        self.instances.update(later.instances)
        for silence in later.silences.values():
            self.add_silence(silence)
        self.reported_gaps += later.reported_gaps
        self.tallies.update(later.tallies)
        self.finals += later.finals
        self.heard_again += later.heard_again
        self.newest_sample_ns = max(self.newest_sample_ns, later.newest_sample_ns)
        self.payload_bytes += later.payload_bytes

    def __len__(self) -> int:
        """Rows waiting, to bound them; what dead letters hold counts as rows of its size."""
        return (
            self.payload_bytes // _ROW_BYTES
            + len(self.facts)
            + len(self.corrections)
            + len(self.gaps)
            + len(self.anomalies)
            + len(self.dead_letters)
            + len(self.superseded)
            + _KEPT_ROWS * len(self.kept)
            + len(self.reported_gaps)
            + len(self.silences)
        )
