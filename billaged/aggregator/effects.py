"""What folding changes, beside the state itself: rows on their way to the ledger.

The ledger reads these records; it never reaches back.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from billaged.model.quantity import MemoryTime
from billaged.model.records import JournalEntry, Kind

Amounts = tuple[int, int, int, int, int]
NO_AMOUNTS: Amounts = (0, 0, 0, 0, 0)
# What a row takes while it waits, roughly.
_ROW_BYTES: Final = 512


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
    ordinal: int
    at_ns: int
    detail: str


class DeadLetter(NamedTuple):
    sequence: int
    kind: Kind
    reason: str
    received_ns: int
    caller: str
    payload: bytes


class SessionRow(NamedTuple):
    """A session as the ledger keeps it. ``state`` is what the fold needs beside it, empty once superseded."""

    vm_id: str
    ordinal: int
    customer_id: str
    start_ns: int
    explicit: int
    last_ns: int
    end_ns: int | None
    end_kind: str | None
    amounts: Amounts
    memory_byte_nanos: int
    measured_ns: int
    gap_ns: int
    samples: int
    memory_peak_bytes: int
    newest: int
    state: bytes


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


class ReportedGap(NamedTuple):
    sequence: int
    vm_id: str
    last_sent_ns: int
    resume_ns: int


def canonical_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


@dataclass(slots=True)
class Effects:
    """Collected between two flushes by exact, one-at-a-time code; columns have their own way."""

    facts: dict[FactKey, Posting] = field(default_factory=dict)
    corrections: dict[tuple[int, FactKey], Posting] = field(default_factory=dict)
    # By (vm_id, ordinal, start): None takes a gap of the ledger away again.
    gaps: dict[tuple[str, int, int], GapRow | None] = field(default_factory=dict)
    anomalies: list[Anomaly] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    superseded: list[SessionRow] = field(default_factory=list)
    instances: dict[str, InstanceRow] = field(default_factory=dict)
    reported_gaps: list[ReportedGap] = field(default_factory=list)
    tallies: Counter[str] = field(default_factory=Counter)
    finals: list[FinalSummary] = field(default_factory=list)
    # The latest time of a sample that was taken, counted or not.
    newest_sample_ns: int = 0
    # Bytes that dead letters hold.
    payload_bytes: int = 0

    def post(self, sequence: int, key: FactKey, posting: Posting, closed_through_ns: int) -> None:
        """Add to the bucket's fact, or beside it once the bucket is closed."""
        if key.bucket_start_ns + key.bucket_ns <= closed_through_ns:
            before = self.corrections.get((sequence, key))
            self.corrections[sequence, key] = posting if before is None else before + posting
        else:
            fact = self.facts.get(key)
            self.facts[key] = posting if fact is None else fact + posting

    def add_facts(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Add fact rows in the ledger's order of columns."""
        for row in rows:
            key, customer_id, values = FactKey(*row[:4]), row[4], row[5:]
            memory = MemoryTime(values[5], values[6]).byte_nanos
            posting = Posting(customer_id, tuple(values[:5]), memory, values[7], values[8], values[9])
            fact = self.facts.get(key)
            self.facts[key] = posting if fact is None else fact + posting

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
        self.superseded += later.superseded
        self.instances.update(later.instances)
        self.reported_gaps += later.reported_gaps
        self.tallies.update(later.tallies)
        self.finals += later.finals
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
            + len(self.reported_gaps)
        )
