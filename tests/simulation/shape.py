"""A bill without what depends on the order of arrival: ordinals, journal rows, corrections, whose peak it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any, NamedTuple

from auditor.bill import Bill
from auditor.events import COUNTER_NAMES
from auditor.invariants import Named
from auditor.usage import MEMORY_UNIT_BYTE_NANOS

Key = tuple[Any, ...]


class Shape(NamedTuple):
    """Sessions and gaps by VM and the session's start, buckets by those and the bucket; peaks by VM and bucket."""

    sessions: dict[Key, Key]
    buckets: dict[Key, Key]
    gaps: dict[Key, Key]
    peaks: dict[Key, int]

    def only(self, vm_ids: Collection[str]) -> Shape:
        """The part of these VMs: a key begins with its VM."""
        return Shape(*({key: values for key, values in table.items() if key[0] in vm_ids} for table in self))

    def differences(self, other: Shape) -> list[str]:
        lines = []
        for name, mine, its in zip(self._fields, self, other, strict=True):
            for key in sorted(mine.keys() | its.keys()):
                if mine.get(key) != its.get(key):
                    lines.append(f"{name} {key}: {mine.get(key)} against {its.get(key)}")
        return lines


def shape_of(bill: Bill) -> Shape:
    starts = {(row["vm_id"], row["ordinal"]): row["start_ns"] for row in bill.rows("sessions")}
    sessions = {
        (row["vm_id"], row["start_ns"]): (
            row["customer_id"], row["explicit"], row["last_ns"], row["end_ns"], row["end_kind"], row["gap_ns"],
            *_amounts(row),
        )
        for row in bill.rows("sessions")
    }  # fmt: skip
    buckets: defaultdict[Key, Key] = defaultdict(tuple)
    peaks: defaultdict[Key, int] = defaultdict(int)
    for row in (*bill.rows("facts"), *bill.rows("corrections")):
        bucket = (row["bucket_start_ns"], row["bucket_ns"])
        key = (row["vm_id"], starts[row["vm_id"], row["ordinal"]], *bucket)
        before = buckets[key] or (0,) * 8
        buckets[key] = tuple(a + b for a, b in zip(before, _amounts(row), strict=True))
        peaks[row["vm_id"], *bucket] = max(peaks[row["vm_id"], *bucket], row["memory_peak_bytes"])
    gaps = {
        (row["vm_id"], starts[row["vm_id"], row["ordinal"]], row["start_ns"]): (
            row["end_ns"], row["kind"], *(row[name] for name in COUNTER_NAMES)
        )
        for row in bill.rows("gaps")
    }  # fmt: skip
    return Shape(
        sessions,
        {key: amounts for key, amounts in buckets.items() if any(amounts)},
        gaps,
        {key: peak for key, peak in peaks.items() if peak},
    )


def _amounts(row: Named) -> Key:
    memory = row["memory_mib_seconds"] * MEMORY_UNIT_BYTE_NANOS + row["memory_rest_byte_nanos"]
    return (*(row[name] for name in COUNTER_NAMES), memory, row["measured_ns"], row["samples"])
