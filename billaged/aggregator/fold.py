"""The common case over columns: the next samples of running VMs, all counters rising, all steps measured.

``plan`` computes and touches nothing; ``apply`` writes and cannot fail. What is not
the common case is named, and folded one VM at a time by ``points.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from billaged.aggregator.arithmetic import Int64, carry_memory, memory_time, proportion, segment_sums_memory
from billaged.aggregator.book import Book
from billaged.aggregator.columns import (
    NEWEST_START,
    NEWEST_STOP,
    NEWEST_STORED,
    PREVIOUS_LOOSE,
    RUNNING,
    SILENT,
    TOTAL_PEAK,
    UNHEARD,
    Columns,
)
from billaged.aggregator.postings import MEASURED, MIB, PEAK, REST, SAMPLES, VALUES_WIDTH, Block
from billaged.model.records import COUNTERS, SAMPLE_WIDTH, MetricsBatch
from billaged.model.time import HOUR_NANOS, INT64_MAX, NANOS

_TIME: Final = 0
_MEMORY: Final = 1
_COUNTERS: Final = 2
# Longer measured steps (a journal may hold rules with any threshold) are folded with plain
# integers: memory x time in 64 bits is exact up to 9 hours.
_SPAN_MAX_NANOS: Final = 8 * HOUR_NANOS
# A later time's bucket may end beyond 64 bits.
_TIME_MAX: Final = INT64_MAX - HOUR_NANOS
# Links into what comes next are closed, and nothing has to be told, where of these a VM has RUNNING only.
_TELLING: Final = RUNNING | NEWEST_START | NEWEST_STOP | PREVIOUS_LOOSE | SILENT | UNHEARD


class Steps(NamedTuple):
    """Measured steps, sorted by row and time; ``first`` marks each row's first."""

    row: NDArray[np.intp]
    first: NDArray[np.bool_]
    time: Int64
    memory: Int64
    counters: Int64
    previous_time: Int64
    previous_memory: Int64
    amounts: Int64

    def subset(self, keep: NDArray[np.bool_]) -> Steps:
        return Steps._make(column[keep] for column in self)


class Plan(NamedTuple):
    """What ``apply`` will write."""

    steps: Steps
    mib: Int64
    rest: Int64
    blocks: list[Block]


def plan(
    columns: Columns, book: Book, closed_through_ns: int, batches: Sequence[MetricsBatch], excluded: set[str]
) -> tuple[Plan | None, NDArray[np.intp]]:
    """What these batches do, and the indexes of those that must be folded one VM at a time.

    A VM is in one or the other with all of its batches, so that its order is kept.
    ``excluded`` VMs are not looked at.
    """
    every = np.arange(len(batches))
    if not len(columns):
        return None, every
    ids, customers, parts = zip(*batches, strict=True)
    rows = np.fromiter(map(columns.row_of.get, ids, repeat(-1)), dtype=np.intp, count=len(ids))
    numbers = np.fromiter(map(columns.customer_number.get, customers, repeat(-1)), dtype=np.int32, count=len(ids))
    # Unknown VMs take the last row's values here, and are not ready whatever those are.
    ready = (rows >= 0) & (columns.customer[rows] == numbers)
    ready &= ((columns.flags[rows] & _TELLING) == RUNNING) & (columns.samples[rows] > 0) & (columns.follow[rows] == 0)
    if excluded:
        ready &= np.array([vm_id not in excluded for vm_id in ids], dtype=np.bool_)
    if not ready.all():
        # Another batch of the same VM goes the same way.
        ready &= ~np.isin(rows, rows[~ready])
        if not ready.any():
            return None, every

    steps = _steps(columns, rows, ready, parts)
    bad = _out_of_line(columns, steps, book, closed_through_ns)
    bad |= _past_64_bits(columns, steps)
    if bad.any():
        bad_rows = np.unique(steps.row[bad])
        ready &= ~np.isin(rows, bad_rows)
        keep = ~np.isin(steps.row, bad_rows)
        steps = steps.subset(keep)
    rest_of_them = np.flatnonzero(~ready)
    if not len(steps.row):
        return None, rest_of_them
    span = steps.time - steps.previous_time
    mib, rest = memory_time(steps.previous_memory, span)
    return Plan(steps, mib, rest, _blocks(columns, book.rules.bucket_ns, steps, span, mib, rest)), rest_of_them


def _steps(columns: Columns, rows: NDArray[np.intp], ready: NDArray[np.bool_], parts: Sequence[Sequence[int]]) -> Steps:
    samples = np.frombuffer(b"".join(parts), dtype=np.int64).reshape(-1, SAMPLE_WIDTH)  # type: ignore[arg-type]
    batch = None
    row = rows
    if len(samples) != len(rows):
        counts = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts)) // SAMPLE_WIDTH
        batch = np.repeat(np.arange(len(parts)), counts)
        row = rows[batch]
        ready = ready[batch]
    # Within one batch samples are sorted by time, between batches they keep the journal's order.
    order = np.argsort(row, kind="stable") if batch is None else np.lexsort((samples[:, _TIME], batch, row))
    if not ready.all():
        order = order[ready[order]]
    # take() is several times faster than indexing where rows are gathered whole.
    row = row[order]
    samples = samples.take(order, axis=0)
    first = np.empty(len(row), dtype=np.bool_)
    first[0] = True
    np.not_equal(row[1:], row[:-1], out=first[1:])

    time, memory, counters = samples[:, _TIME], samples[:, _MEMORY], samples[:, _COUNTERS:]
    previous_time = columns.last_time[row]
    previous_memory = columns.memory[row]
    previous = columns.last.take(row, axis=0)
    if not first.all():
        later = np.flatnonzero(~first)
        previous_time[later] = time[later - 1]
        previous_memory[later] = memory[later - 1]
        previous[later] = counters[later - 1]
    amounts = counters - previous
    out_of_line = _lowest(amounts) < 0
    slots = columns.mark_slot[row]
    marked = np.flatnonzero(slots >= 0)
    if len(marked):
        # A value that reaches its mark is counted from the mark, and its link is open.
        # The lower one tells: it is passed first.
        marks = columns.marks.values[slots[marked], :COUNTERS]
        out_of_line[marked] |= ((marks > 0) & (marks <= counters[marked])).any(axis=1)
    # Told by the first column, which is never negative otherwise.
    amounts[out_of_line, 0] = -1
    return Steps(row, first, time, memory, counters, previous_time, previous_memory, amounts)


def _lowest(rows: Int64) -> Int64:
    """The lowest of each row. Column by column: over five columns an axis reduction takes four times as long."""
    lowest = rows[:, 0]
    for column in range(1, rows.shape[1]):
        lowest = np.minimum(lowest, rows[:, column])
    return lowest


def _highest(rows: Int64) -> Int64:
    highest = rows[:, 0]
    for column in range(1, rows.shape[1]):
        highest = np.maximum(highest, rows[:, column])
    return highest


def _out_of_line(columns: Columns, steps: Steps, book: Book, closed_through_ns: int) -> NDArray[np.bool_]:
    """Steps that are not the common case: not forward, a gap, a decrease, past a mark, implausible, or into a closed
    bucket."""
    rules, span = book.rules, steps.time - steps.previous_time
    longest = np.minimum(book.thresholds.of(columns, steps.row), _SPAN_MAX_NANOS)
    bad = (span <= 0) | (span > longest) | (steps.amounts[:, 0] < 0)
    # Spans at or below the threshold are short enough that these products fit.
    allowed = np.where(bad, 0, span) + NANOS
    bad |= steps.amounts[:, 0] > rules.max_cores * allowed
    bad |= _highest(steps.amounts[:, 1:]) > rules.max_gigabytes_per_second * allowed
    if closed_through_ns:
        bucket_end = steps.previous_time - steps.previous_time % rules.bucket_ns + rules.bucket_ns
        bad |= bucket_end <= closed_through_ns
    return bad


def _past_64_bits(columns: Columns, steps: Steps) -> NDArray[np.bool_] | bool:
    """Steps of sessions whose totals may not fit any more: plain integers tell, and what is to become of them."""
    totals = columns.total.take(steps.row, axis=0)
    # Counters only rise here, so what a session's steps bill together is at most its newest value.
    if int(totals.max()) + int(steps.counters.max()) <= INT64_MAX and int(steps.time.max()) <= _TIME_MAX:
        return False
    over: NDArray[np.bool_] = (totals > INT64_MAX - steps.counters).any(axis=1) | (steps.time > _TIME_MAX)
    return over


def _blocks(columns: Columns, bucket_ns: int, steps: Steps, span: Int64, mib: Int64, rest: Int64) -> list[Block]:
    """The postings of these steps: whole where a step stays in its bucket, in parts where it crosses an edge."""
    from_bucket = steps.previous_time - steps.previous_time % bucket_ns
    to_bucket = steps.time - steps.time % bucket_ns
    values = np.empty((len(span), VALUES_WIDTH), dtype=np.int64)
    values[:, :COUNTERS] = steps.amounts
    values[:, MIB], values[:, REST], values[:, MEASURED] = mib, rest, span
    values[:, SAMPLES] = 1
    values[:, PEAK] = steps.memory
    crossing = np.flatnonzero(from_bucket != to_bucket)
    if not len(crossing):
        return [_block(columns, steps.row, to_bucket, values)]
    # The sample itself counts in its own bucket; the usage is spread.
    values[crossing, :SAMPLES] = 0
    return [
        _block(columns, steps.row, to_bucket, values),
        _spread(columns, bucket_ns, steps, crossing, from_bucket[crossing]),
    ]


def _spread(columns: Columns, bucket_ns: int, steps: Steps, crossing: NDArray[np.intp], from_bucket: Int64) -> Block:
    start, end = steps.previous_time[crossing], steps.time[crossing]
    parts = (end - 1 - from_bucket) // bucket_ns + 1
    step = np.repeat(np.arange(len(crossing)), parts)
    nth = np.arange(len(step)) - np.repeat(np.cumsum(parts) - parts, parts)
    bucket = from_bucket[step] + nth * bucket_ns
    part_start = np.maximum(bucket, start[step])
    part_end = np.minimum(bucket + bucket_ns, end[step])
    source = crossing[step]
    # What is used up to the end of each part: everything at the last one, a proportion before.
    until = steps.amounts[source]
    inner = np.flatnonzero(part_end < end[step])
    whole = (end - start)[step[inner]][:, None]
    until[inner] = proportion(until[inner], (part_end[inner] - start[step[inner]])[:, None], whole)
    values = np.zeros((len(step), VALUES_WIDTH), dtype=np.int64)
    values[:, :COUNTERS] = until
    later = np.flatnonzero(nth)
    values[later, :COUNTERS] -= until[later - 1]
    values[:, MEASURED] = part_end - part_start
    values[:, MIB], values[:, REST] = memory_time(steps.previous_memory[source], values[:, MEASURED])
    return _block(columns, steps.row[source], bucket, values)


def _block(columns: Columns, row: NDArray[np.intp], bucket: Int64, values: Int64) -> Block:
    return Block(row, columns.ordinal[row], columns.customer[row], bucket, values)


def apply(columns: Columns, planned: Plan, rules: int, passed_seconds: int) -> None:
    """Write what was planned into the columns. ``rules`` is the number of those in force."""
    steps = planned.steps
    starts = np.flatnonzero(steps.first)
    rows = steps.row[starts]
    columns.open_windows(rows)
    amounts, mib, rest, peak = steps.amounts, planned.mib, planned.rest, steps.memory
    held = steps.previous_memory
    time, memory, counters = steps.time, steps.memory, steps.counters
    previous_time, previous_memory = steps.previous_time, steps.previous_memory
    previous = columns.last.take(rows, axis=0)
    if len(rows) == len(steps.row):
        columns.samples[rows] += 1
    else:
        last = np.append(starts[1:], len(steps.row)) - 1
        columns.samples[rows] += last - starts + 1
        amounts = np.add.reduceat(amounts, starts, axis=0)
        mib, rest = segment_sums_memory(mib, rest, starts)
        peak = np.maximum.reduceat(peak, starts)
        held = np.maximum.reduceat(held, starts)
        several = np.flatnonzero(last > starts)
        previous[several] = counters[last[several] - 1]
        previous_time, previous_memory = previous_time[last], previous_memory[last]
        time, memory, counters = time[last], memory[last], counters[last]
    columns.total[rows] = columns.total.take(rows, axis=0) + amounts
    total_mib = columns.total_mib[rows] + mib
    total_rest = columns.total_rest[rows] + rest
    carry_memory(total_mib, total_rest)
    columns.total_mib[rows], columns.total_rest[rows] = total_mib, total_rest
    columns.peak[rows] = np.maximum(columns.peak[rows], peak)
    windows, slots = columns.windows.values, columns.window_slot[rows]
    # What a window's steps held counts for its peak too, so that no mean is above it.
    windows[slots, TOTAL_PEAK] = np.maximum(windows[slots, TOTAL_PEAK], np.maximum(peak, held))

    columns.last_time[rows] = time
    columns.memory[rows] = memory
    columns.last[rows] = counters
    columns.previous_time[rows] = previous_time
    columns.previous_memory[rows] = previous_memory
    columns.previous[rows] = previous
    columns.flags[rows] &= ~np.uint16(NEWEST_STORED)
    columns.link_rules[rows] = rules
    columns.heard[rows] = passed_seconds
    columns.dirty[rows] = True
