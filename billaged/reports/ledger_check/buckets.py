"""Facts and corrections in columns: what is plainly right is passed, the rest is judged one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from billaged.aggregator.arithmetic import memory_time
from billaged.model.quantity import REST_PER_MIB_SECOND
from billaged.model.records import MAX_MEMORY_BYTES
from billaged.model.time import HOUR_NANOS
from billaged.reports.ledger_check.rows import SUMMED
from billaged.reports.ledger_check.stretch import Stretch

Int64 = NDArray[np.int64]
Flags = NDArray[np.bool_]

# Far from the ends of 64 bits, so that columns cannot overflow; what is beyond is judged by itself.
_TIME_MAX: Final = 2**62
# Facts' columns are bucket_start_ns, bucket_ns, vm_id, ordinal, customer_id, SUMMED, memory_peak_bytes.
_START, _LENGTH, _VM_ID, _ORDINAL, _CUSTOMER = range(5)
_MIB, _REST, _MEASURED = map(SUMMED.index, ("memory_mib_seconds", "memory_rest_byte_nanos", "measured_ns"))


class BucketColumns(NamedTuple):
    """Rows of facts, or of corrections without their sequence and cause, on their side."""

    start: Int64
    length: Int64
    slots: Int64
    customer: Int64
    # In the order of SUMMED.
    values: list[Int64]
    peak: Int64


def bucket_columns(columns: Sequence[tuple[Any, ...]], stretch: Stretch) -> BucketColumns:
    """Columns in the order of ``FACT_COLUMNS``."""
    code = stretch.customer_codes.get
    ordinals = np.array(columns[_ORDINAL], dtype=np.int64)
    return BucketColumns(
        np.array(columns[_START], dtype=np.int64),
        np.array(columns[_LENGTH], dtype=np.int64),
        stretch.slots(columns[_VM_ID], ordinals),
        np.array([code(customer_id, -1) for customer_id in columns[_CUSTOMER]], dtype=np.int64),
        [np.array(column, dtype=np.int64) for column in columns[_CUSTOMER + 1 : -1]],
        np.array(columns[-1], dtype=np.int64),
    )


def in_place(rows: BucketColumns, stretch: Stretch) -> Flags:
    """Which rows are plainly those of a session and a bucket that there are, with the session's customer."""
    start, length, rest = rows.start, rows.length, rows.values[_REST]
    right: Flags = (rows.slots >= 0) & (start >= 0) & (start < _TIME_MAX) & (length > 0) & (length <= HOUR_NANOS)
    if len(stretch):
        right &= rows.customer == stretch.customer[np.maximum(rows.slots, 0)]
    right &= start % np.where(right, length, 1) == 0
    right &= (rest >= 0) & (rest < REST_PER_MIB_SECOND) & (rows.peak >= 0)
    return right


def adds_up(rows: BucketColumns, stretch: Stretch) -> Flags:
    """Which of these are in place and plainly break nothing: facts without corrections, or the sums of both."""
    right = in_place(rows, stretch)
    if not right.any():
        return right
    for values in rows.values:
        right &= values >= 0
    slots = np.where(right, rows.slots, 0)
    start = np.where(right, rows.start, 0)
    end = start + np.where(right, rows.length, 1)
    mib, rest, measured = (rows.values[field] for field in (_MIB, _REST, _MEASURED))
    peak = stretch.peak[slots]
    right &= (start <= stretch.until[slots]) & (end > stretch.start[slots])
    right &= (measured <= rows.length) & (rows.peak <= peak) & (peak <= MAX_MEMORY_BYTES)
    right &= measured + stretch.gap_ns(slots, start, end) == stretch.life_ns(slots, start, end)
    most_mib, most_rest = memory_time(np.where(right, peak, 0), np.where(right, measured, 0))
    right &= (mib < most_mib) | ((mib == most_mib) & (rest <= most_rest))
    return right
