"""One bucket of a session, exact, with its corrections: for what is not plainly right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from billaged.ledger.audit_reader import AuditReader
from billaged.model.quantity import REST_PER_MIB_SECOND
from billaged.model.records import COUNTER_FIELDS
from billaged.model.time import HOUR_NANOS, INT64_MAX
from billaged.reports.ledger_check import invariants as law
from billaged.reports.ledger_check.findings import Findings, Key
from billaged.reports.ledger_check.rows import SUMMED, BucketRow
from billaged.reports.ledger_check.stretch import Stretch

_LEAST_ZERO: Final = (*COUNTER_FIELDS, "measured_ns", "samples")


def key_of(row: BucketRow) -> Key:
    return {
        "bucket_start_ns": row.bucket_start_ns,
        "bucket_ns": row.bucket_ns,
        "vm_id": row.vm_id,
        "ordinal": row.ordinal,
    }


class BucketJudge:
    """Judges rows of facts and corrections of a stretch, and what they come to together."""

    def __init__(self, reader: AuditReader, stretch: Stretch, findings: Findings) -> None:
        self._reader = reader
        self._stretch = stretch
        self._findings = findings

    def row(self, table: str, row: BucketRow, key: Key) -> bool:
        """What can be said of one row by itself. False where its session is not there to go on with."""
        stretch, broke = self._stretch, self._findings.broke
        if stretch.is_damaged(row.vm_id, row.ordinal):
            return False
        if not 0 <= row.memory_rest_byte_nanos < REST_PER_MIB_SECOND:
            broke(law.VALUES, table, key, f"memory_rest_byte_nanos is {row.memory_rest_byte_nanos}")
        if row.memory_peak_bytes < 0:
            broke(law.VALUES, table, key, f"memory_peak_bytes is negative: {row.memory_peak_bytes}")
        on_edge = 0 < row.bucket_ns <= HOUR_NANOS and row.bucket_start_ns % row.bucket_ns == 0
        if not on_edge:
            broke(law.BUCKETS, table, key, f"no bucket of {row.bucket_ns} ns begins at {row.bucket_start_ns}")
        slot = stretch.slot(row.vm_id, row.ordinal)
        if slot < 0:
            broke(law.REFERENCES, table, key, "there is no such session")
            return False
        if stretch.customer_codes.get(row.customer_id) != stretch.customer[slot]:
            broke(law.OWNER, table, key, f"its customer is {row.customer_id}, its session has another")
        return on_edge

    def whole(self, whole: BucketRow) -> None:
        """A corrected bucket; its rows have been judged each by itself."""
        on_edge = 0 < whole.bucket_ns <= HOUR_NANOS and whole.bucket_start_ns % whole.bucket_ns == 0
        if on_edge and self._stretch.slot(whole.vm_id, whole.ordinal) >= 0:
            self.bucket("corrections", whole, key_of(whole))

    def bucket(self, table: str, whole: BucketRow, key: Key) -> None:
        """A fact with all its corrections: ``whole`` has their sum."""
        stretch, broke = self._stretch, self._findings.broke
        slot = stretch.slot(whole.vm_id, whole.ordinal)
        for name in _LEAST_ZERO:
            if getattr(whole, name) < 0:
                broke(law.BUCKETS, table, key, f"{name} is negative: {getattr(whole, name)}")
        if whole.memory_byte_nanos < 0:
            broke(law.BUCKETS, table, key, f"memory x time is negative: {whole.memory_byte_nanos} byte-ns")
        most = int(stretch.peak[slot]) * whole.measured_ns
        if whole.memory_byte_nanos > most:
            problem = (
                f"memory x time {whole.memory_byte_nanos} byte-ns is more than the session's peak x measured, {most}"
            )
            broke(law.MEMORY, table, key, problem)
        start_ns, until_ns = int(stretch.start[slot]), int(stretch.until[slot])
        end_ns = whole.bucket_start_ns + whole.bucket_ns
        # A sample at the very end counts in the bucket that begins there.
        used = whole.memory_byte_nanos or any(getattr(whole, name) for name in _LEAST_ZERO)
        if used and (whole.bucket_start_ns > until_ns or end_ns <= start_ns):
            broke(law.STOP, table, key, f"it is outside its session's life from {start_ns} to {until_ns}")
        self._time(table, whole, key, slot)

    def _time(self, table: str, whole: BucketRow, key: Key, slot: int) -> None:
        """Measured time and gap are the life in the bucket; in all that overlap, where lengths were changed."""
        from_ns, to_ns = whole.bucket_start_ns, whole.bucket_start_ns + whole.bucket_ns
        life_ns, gap_ns = self._life_and_gap(slot, from_ns, to_ns)
        measured_ns = whole.measured_ns
        if measured_ns + gap_ns != life_ns:
            from_ns, to_ns, measured_ns = self._overlapping(whole)
            life_ns, gap_ns = self._life_and_gap(slot, from_ns, to_ns)
        if measured_ns + gap_ns != life_ns:
            problem = (
                f"measured {measured_ns} + gap {gap_ns} ns are not the session's life of {life_ns} ns"
                f" from {from_ns} to {to_ns}"
            )
            self._findings.broke(law.BUCKETS, table, key, problem)

    def _life_and_gap(self, slot: int, from_ns: int, to_ns: int) -> tuple[int, int]:
        values = (slot, from_ns, min(to_ns, INT64_MAX))
        slots, begins, ends = (np.array([value], dtype=np.int64) for value in values)
        stretch = self._stretch
        return int(stretch.life_ns(slots, begins, ends)[0]), int(stretch.gap_ns(slots, begins, ends)[0])

    def _overlapping(self, whole: BucketRow) -> tuple[int, int, int]:
        """From, to and measured time of all buckets of the session that hang together with this one.

        All lengths divide an hour, so none reaches beyond it.
        """
        hour_ns = whole.bucket_start_ns - whole.bucket_start_ns % HOUR_NANOS
        rows: list[BucketRow] = []
        for table in ("facts", "corrections"):
            about = (whole.vm_id, whole.ordinal, hour_ns, hour_ns + HOUR_NANOS)
            rows += [BucketRow(*row) for row in self._reader.bucket_rows(table, *about)]
        rows.sort(key=lambda row: row.bucket_start_ns)
        groups: list[list[BucketRow]] = []
        to_ns = hour_ns
        for row in rows:
            if row.bucket_start_ns >= to_ns:
                groups.append([])
            groups[-1].append(row)
            to_ns = max(to_ns, row.bucket_start_ns + row.bucket_ns)
        group = next(group for group in groups if any(row[:2] == whole[:2] for row in group))
        from_ns = min(row.bucket_start_ns for row in group)
        to_ns = max(row.bucket_start_ns + row.bucket_ns for row in group)
        return from_ns, to_ns, sum(row.measured_ns for row in group)


def sum_of(rows: Sequence[BucketRow]) -> BucketRow:
    """Rows of one bucket and session together."""
    values = {name: sum(getattr(row, name) for row in rows) for name in SUMMED}
    mib, rest = divmod(sum(row.memory_byte_nanos for row in rows), REST_PER_MIB_SECOND)
    values |= {"memory_mib_seconds": mib, "memory_rest_byte_nanos": rest}
    return rows[0]._replace(**values, memory_peak_bytes=max(row.memory_peak_bytes for row in rows))
