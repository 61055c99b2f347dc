"""What one ledger commit takes: the rows of every table, and the journal position they cover.

Tuples in the order of the column names beside them; the ledger's tables have the same names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from billaged.aggregator.buckets import BucketClock
from billaged.model.records import COUNTER_FIELDS, FoldRules

Row = tuple[Any, ...]

MEMORY_FIELDS: Final = ("memory_mib_seconds", "memory_rest_byte_nanos")

SESSION_COLUMNS: Final = (
    "vm_id", "ordinal", "customer_id", "start_ns", "explicit", "last_ns", "end_ns", "end_kind",
    *COUNTER_FIELDS, *MEMORY_FIELDS, "measured_ns", "gap_ns", "samples", "memory_peak_bytes", "newest", "state",
)  # fmt: skip
FACT_COLUMNS: Final = (
    "bucket_start_ns", "bucket_ns", "vm_id", "ordinal", "customer_id",
    *COUNTER_FIELDS, *MEMORY_FIELDS, "measured_ns", "samples", "memory_peak_bytes",
)  # fmt: skip
CORRECTION_COLUMNS: Final = ("sequence", *FACT_COLUMNS)
GAP_COLUMNS: Final = (
    "vm_id", "ordinal", "start_ns", "end_ns", "kind", "customer_id", *COUNTER_FIELDS, "sequence",
)  # fmt: skip
ANOMALY_COLUMNS: Final = ("sequence", "item", "kind", "vm_id", "ordinal", "at_ns", "detail")
DEAD_LETTER_COLUMNS: Final = ("sequence", "kind", "reason", "received_ns", "caller", "payload")
INSTANCE_COLUMNS: Final = ("instance_id", "last_seen_ns", "active_vms")
REPORTED_GAP_COLUMNS: Final = ("sequence", "vm_id", "last_sent_ns", "resume_ns")


class Checkpoint(NamedTuple):
    """Where the fold stands beside its VMs."""

    # The last journal sequence that is folded in.
    position: int = 0
    # How many intervals have closed, and when the running one began (0: not yet).
    window_number: int = 0
    window_start_ns: int = 0
    # None before the first rules record.
    rules: FoldRules | None = None
    clock: BucketClock = BucketClock()


@dataclass(slots=True)
class LedgerChanges:
    """One commit. Facts are added to what is there; sessions, gaps and instances replace it; the rest is new."""

    before: int
    checkpoint: Checkpoint
    sessions: list[Row] = field(default_factory=list)
    # Each list has every (bucket, session) at most once.
    facts: list[list[Row]] = field(default_factory=list)
    corrections: list[Row] = field(default_factory=list)
    gaps: list[Row] = field(default_factory=list)
    # (vm_id, ordinal, start_ns) of gaps that are none any more.
    gaps_taken_back: list[Row] = field(default_factory=list)
    anomalies: list[Row] = field(default_factory=list)
    dead_letters: list[Row] = field(default_factory=list)
    instances: list[Row] = field(default_factory=list)
    reported_gaps: list[Row] = field(default_factory=list)
    tallies: dict[str, int] = field(default_factory=dict)


class LedgerWriter(Protocol):
    """What the aggregator needs from the ledger."""

    def commit(self, changes: LedgerChanges) -> None:
        """All of it or nothing, durable on return.

        Raises:
            DurabilityLost: it failed; what is on disk is unknown.
            StorageError: another daemon has taken the ledger over.
        """

    def newest_sessions(self, vm_ids: Collection[str]) -> Sequence[Row]:
        """The newest session of each of these VMs that has one, as ``SESSION_COLUMNS``."""

    def running_sessions(self) -> Iterable[Sequence[Row]]:
        """All running sessions, as ``SESSION_COLUMNS``, in chunks."""

    def checkpoint(self) -> Checkpoint: ...
