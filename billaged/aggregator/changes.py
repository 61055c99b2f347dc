"""What one ledger commit takes: the rows of every table, and the journal position they cover.

Tuples in the order of the column names beside them; the ledger's tables have the same names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
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
CORRECTION_COLUMNS: Final = ("sequence", *FACT_COLUMNS, "cause")
GAP_COLUMNS: Final = (
    "vm_id", "ordinal", "start_ns", "end_ns", "kind", "customer_id", *COUNTER_FIELDS, "sequence",
)  # fmt: skip
ANOMALY_COLUMNS: Final = ("sequence", "item", "kind", "vm_id", "at_ns", "ordinal", "detail")
DEAD_LETTER_COLUMNS: Final = ("sequence", "kind", "reason", "received_ns", "caller", "payload")
INSTANCE_COLUMNS: Final = ("instance_id", "last_seen_ns", "active_vms", "heard_seconds", "silent")
KEPT_INSTANT_COLUMNS: Final = ("vm_id", "timeline", "time_ns", "content")
SILENCE_COLUMNS: Final = ("vm_id", "start_ns", "reason", "end_ns", "sequence")
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
    # The journal's chain at the position; empty before the first chained row.
    chain: bytes = b""
    # The lengths of all ticks so far: what silence is counted in.
    passed_ns: int = 0
    # All rules so far, each once: links name them by their place. Empty before the first rules record.
    book: tuple[FoldRules, ...] = ()


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
    silences: list[Row] = field(default_factory=list)
    # New content for a key, and (vm_id, timeline, time_ns) of instants that are kept no more.
    kept_instants: list[Row] = field(default_factory=list)
    kept_no_more: list[Row] = field(default_factory=list)
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

    def sessions(self, ordinals: Mapping[str, Collection[int]]) -> Sequence[Row]:
        """These sessions, by VM and ordinal, as ``SESSION_COLUMNS``; those that are there."""

    def kept_instants(self, vm_ids: Collection[str]) -> Iterable[Row]:
        """Of each of these VMs the newest 4,096 of its newest timeline, as ``KEPT_INSTANT_COLUMNS``, by time."""

    def running_sessions(self) -> Iterable[Sequence[Row]]:
        """All running sessions, as ``SESSION_COLUMNS``, in chunks."""

    def vms_with_kept_instants(self, vm_ids: Collection[str]) -> Collection[str]:
        """Those of these VMs of which there are kept instants."""

    def instances(self) -> Sequence[Row]:
        """All instances, as ``INSTANCE_COLUMNS``; the VMs as a list."""

    def checkpoint(self) -> Checkpoint: ...
