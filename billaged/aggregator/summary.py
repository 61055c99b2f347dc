"""Summaries: what sessions used between two ticks, and so far. Columns until somebody wants rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from billaged.aggregator.arithmetic import Int64
from billaged.aggregator.columns import (
    RUNNING,
    TOTAL_GAP,
    TOTAL_MEASURED,
    TOTAL_MIB,
    TOTAL_PEAK,
    TOTAL_REST,
    TOTAL_SAMPLES,
    Columns,
)
from billaged.aggregator.effects import FinalSummary
from billaged.model.quantity import REST_PER_MIB_SECOND, MemoryTime, Usage


class Summary(NamedTuple):
    """One session in one window. Times in nanoseconds since the epoch; both spans are half-open."""

    vm_id: str
    customer_id: str
    # The VM's how-manieth session this is.
    ordinal: int
    window_start_ns: int
    window_end_ns: int
    session_start_ns: int
    session_end_ns: int
    window: Usage
    session: Usage
    final: bool
    replayed: bool


class SummaryBatch(NamedTuple):
    """Many sessions' summaries of one window, as columns; the totals have ``columns.TOTALS_WIDTH``."""

    window_start_ns: int
    window_end_ns: int
    # Folded while replaying: the window may have been given out before.
    replayed: bool
    vm_ids: Sequence[str]
    customer_ids: Sequence[str]
    ordinals: Sequence[int]
    session_start: Int64
    session_end: Int64
    final: NDArray[np.bool_]
    window: Int64
    session: Int64

    def __len__(self) -> int:
        return len(self.vm_ids)

    def row(self, index: int) -> Summary:
        return Summary(
            self.vm_ids[index],
            self.customer_ids[index],
            self.ordinals[index],
            self.window_start_ns,
            self.window_end_ns,
            int(self.session_start[index]),
            int(self.session_end[index]),
            usage_of(self.window[index].tolist()),
            usage_of(self.session[index].tolist()),
            bool(self.final[index]),
            self.replayed,
        )

    def rows(self) -> Iterator[Summary]:
        return map(self.row, range(len(self)))


class SummarySink(Protocol):
    """Where summaries go. Must not block: the fold waits for it."""

    def publish(self, batch: SummaryBatch) -> None: ...


def usage_of(totals: Sequence[int]) -> Usage:
    """A row of totals as usage."""
    cpu_time_ns, disk_read_bytes, disk_write_bytes, network_rx_bytes, network_tx_bytes = totals[:TOTAL_MIB]
    return Usage(
        cpu_time_ns,
        disk_read_bytes,
        disk_write_bytes,
        network_rx_bytes,
        network_tx_bytes,
        memory_byte_nanos=MemoryTime(totals[TOTAL_MIB], totals[TOTAL_REST]).byte_nanos,
        memory_peak_bytes=totals[TOTAL_PEAK],
        measured_ns=totals[TOTAL_MEASURED],
        gap_ns=totals[TOTAL_GAP],
        samples=totals[TOTAL_SAMPLES],
    )


def close_window(columns: Columns, window_start_ns: int, window_end_ns: int, *, replayed: bool) -> SummaryBatch:
    """Sum up every session the running interval touched, and begin the next interval."""
    slots = columns.windows.slots()
    rows = columns.windows.owner[slots].astype(np.intp)
    base = columns.windows.values[slots]
    totals = columns.totals(rows)
    window = _difference(totals, base)
    # A session that only gave its final summary since has nothing more to say.
    touched = window.any(axis=1)
    if not touched.all():
        rows, totals, window = rows[touched], totals[touched], window[touched]
    vm_id, customer_ids = columns.vm_id, columns.customer_ids
    batch = SummaryBatch(
        window_start_ns,
        window_end_ns,
        replayed,
        [vm_id[row] for row in rows.tolist()],
        [customer_ids[number] for number in columns.customer[rows].tolist()],
        columns.ordinal[rows].tolist(),
        columns.start[rows],
        columns.accounted(rows),
        (columns.flags[rows] & RUNNING) == 0,
        window,
        totals,
    )
    columns.window_slot[columns.windows.owner[slots]] = -1
    columns.windows.release_all()
    return batch


def of_finals(finals: Sequence[FinalSummary], window_start_ns: int, *, replayed: bool) -> SummaryBatch:
    """The summaries of sessions that ended, folded together: their window ends when the last of them was received."""
    totals = np.array([final.totals for final in finals], dtype=np.int64)
    base = np.array([final.window_base for final in finals], dtype=np.int64)
    return SummaryBatch(
        window_start_ns,
        max(final.window_end_ns for final in finals),
        replayed,
        [final.vm_id for final in finals],
        [final.customer_id for final in finals],
        [final.ordinal for final in finals],
        np.array([final.session_start_ns for final in finals], dtype=np.int64),
        np.array([final.session_end_ns for final in finals], dtype=np.int64),
        np.ones(len(finals), dtype=np.bool_),
        _difference(totals, base),
        totals,
    )


def one_each(finals: Sequence[FinalSummary]) -> list[FinalSummary]:
    """One final summary for each session of a VM, of those that the samples of one batch gave one by one.

    Nobody is told what was so for the time between two of its samples: it may not even fit 64 bits.
    """
    merged: dict[int, FinalSummary] = {}
    for final in finals:
        if (first := merged.get(final.ordinal)) is not None:
            peak_bytes = max(first.window_base[TOTAL_PEAK], final.window_base[TOTAL_PEAK])
            final = final._replace(window_base=(*first.window_base[:TOTAL_PEAK], peak_bytes))
        merged[final.ordinal] = final
    return list(merged.values())


def _difference(totals: Int64, base: Int64) -> Int64:
    window = totals - base
    window[:, TOTAL_PEAK] = base[:, TOTAL_PEAK]
    # The rest of a difference may be below zero: floor it, so that only MiB-seconds go negative.
    borrowed, window[:, TOTAL_REST] = np.divmod(window[:, TOTAL_REST], REST_PER_MIB_SECOND)
    window[:, TOTAL_MIB] += borrowed
    return window
