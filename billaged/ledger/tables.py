"""The ledger's tables. Times are int64 nanoseconds since the epoch, amounts int64 in the unit of their name."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, Table, Text

from billaged.aggregator import changes
from billaged.model.records import COUNTER_FIELDS

metadata: Final = MetaData()

# SQLite's INTEGER is 64 bits wide; elsewhere BIGINT is.
_Int64: Final = BigInteger().with_variant(Integer(), "sqlite")


def _counters() -> list[Column[int]]:
    return [Column(name, _Int64, nullable=False) for name in (*COUNTER_FIELDS,)]


def _memory() -> list[Column[int]]:
    return [Column(name, _Int64, nullable=False) for name in changes.MEMORY_FIELDS]


def _int(name: str, *, key: bool = False, null: bool = False) -> Column[int]:
    return Column(name, _Int64, primary_key=key, nullable=null, autoincrement=False)


def _text(name: str, *, key: bool = False, null: bool = False) -> Column[str]:
    return Column(name, Text, primary_key=key, nullable=null)


def _usage() -> list[Column[int]]:
    """What was used in a bucket, in the order of ``aggregator.changes.FACT_COLUMNS``."""
    return [*_counters(), *_memory(), _int("measured_ns"), _int("samples"), _int("memory_peak_bytes")]


# One row: how far the ledger has come in which journal, and who may write it.
checkpoint: Final = Table(
    "checkpoint",
    metadata,
    _int("part", key=True),
    _text("journal_id"),
    _int("epoch"),
    _int("position"),
    _int("window_number"),
    _int("window_start_ns"),
    _text("rules", null=True),
    _text("clock"),
    # The journal's chain at the position; none before the first chained row.
    Column("chain", LargeBinary, nullable=True),
    # The lengths of all ticks so far: what silence is counted in.
    _int("passed_ns"),
)

sessions: Final = Table(
    "sessions",
    metadata,
    _text("vm_id", key=True),
    _int("ordinal", key=True),
    _text("customer_id"),
    _int("start_ns"),
    _int("explicit"),
    _int("last_ns"),
    _int("end_ns", null=True),
    _text("end_kind", null=True),
    *_counters(),
    *_memory(),
    _int("measured_ns"),
    _int("gap_ns"),
    _int("samples"),
    _int("memory_peak_bytes"),
    # 1 for a VM's newest session, the only one that can change.
    _int("newest"),
    # What the fold needs beside it (aggregator/persistence.py); empty once superseded.
    Column("state", LargeBinary, nullable=False),
    Index("sessions_by_customer", "customer_id", "vm_id"),
)
Index(
    "sessions_running",
    sessions.c.vm_id,
    sqlite_where=sessions.c.end_ns.is_(None),
    postgresql_where=sessions.c.end_ns.is_(None),
)

# A session's measured usage in one bucket.
facts: Final = Table(
    "facts",
    metadata,
    _int("bucket_start_ns", key=True),
    _int("bucket_ns", key=True),
    _text("vm_id", key=True),
    _int("ordinal", key=True),
    _text("customer_id"),
    *_usage(),
    Index("facts_by_vm", "vm_id", "bucket_start_ns"),
)

# What changed a bucket after it closed: beside the fact, never into it.
corrections: Final = Table(
    "corrections",
    metadata,
    _int("sequence", key=True),
    _int("bucket_start_ns", key=True),
    _int("bucket_ns", key=True),
    _text("vm_id", key=True),
    _int("ordinal", key=True),
    _text("customer_id"),
    *_usage(),
    # Why: the ways in which the record changed it (docs/billing-semantics.md).
    _text("cause"),
    Index("corrections_by_vm", "vm_id", "bucket_start_ns"),
)

# Spans that were not seen, with the counters billed across them.
gaps: Final = Table(
    "gaps",
    metadata,
    _text("vm_id", key=True),
    _int("ordinal", key=True),
    _int("start_ns", key=True),
    _int("end_ns"),
    _text("kind"),
    _text("customer_id"),
    *_counters(),
    _int("sequence"),
    Index("gaps_by_end", "end_ns"),
)

anomalies: Final = Table(
    "anomalies",
    metadata,
    _int("sequence", key=True),
    _int("item", key=True),
    _text("kind", key=True),
    _text("vm_id", key=True),
    _int("at_ns", key=True),
    _int("ordinal"),
    _text("detail"),
    Index("anomalies_by_vm", "vm_id", "at_ns"),
)

dead_letters: Final = Table(
    "dead_letters",
    metadata,
    _int("sequence", key=True),
    _text("kind"),
    _text("reason"),
    _int("received_ns"),
    _text("caller"),
    Column("payload", LargeBinary, nullable=False),
)

# Host agents: when each was last heard (by the clock, and in seconds of ticks), and the VMs it listed (a JSON list).
instances: Final = Table(
    "instances",
    metadata,
    _text("instance_id", key=True),
    _int("last_seen_ns"),
    _text("active_vms"),
    _int("heard_seconds"),
    _int("silent"),
)

# What is kept of each VM's timeline, so that a point that comes late finds its place.
kept_instants: Final = Table(
    "kept_instants",
    metadata,
    _text("vm_id", key=True),
    _int("timeline", key=True),
    _int("time_ns", key=True),
    # Packed (aggregator/instant.py).
    Column("content", LargeBinary, nullable=False),
    Index("kept_instants_by_time", "time_ns"),
)

# When and why a VM was not heard; without an end while it still is not. All VMs at once where the id is empty.
silences: Final = Table(
    "silences",
    metadata,
    _text("vm_id", key=True),
    _int("start_ns", key=True),
    _text("reason", key=True),
    _int("end_ns", null=True),
    # The journal row that told.
    _int("sequence"),
)

reported_gaps: Final = Table(
    "reported_gaps",
    metadata,
    _int("sequence", key=True),
    _text("vm_id"),
    _int("last_sent_ns"),
    _int("resume_ns"),
    Index("reported_gaps_by_vm", "vm_id"),
)

# Counts since the ledger began: samples, duplicates, late points and so on.
tallies: Final = Table("tallies", metadata, _text("name", key=True), _int("value"))
