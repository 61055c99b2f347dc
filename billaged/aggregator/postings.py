"""Fact postings of many VMs at once: blocks of rows, merged by session and bucket before they leave."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from billaged.aggregator.arithmetic import Int64, segment_sums_memory
from billaged.model.records import COUNTERS
from billaged.model.time import MINUTE_NANOS

# The columns of a posting's values.
MIB, REST, MEASURED, SAMPLES, PEAK = range(COUNTERS, COUNTERS + 5)
VALUES_WIDTH: Final = COUNTERS + 5

# Merge when this many rows wait, so that they take at most some 8 MiB.
_MERGE_ROWS: Final = 65_536


class Block(NamedTuple):
    """Postings: who (row and session), where (bucket), what (values, shape (n, VALUES_WIDTH))."""

    row: NDArray[np.intp]
    ordinal: NDArray[np.int32]
    customer: NDArray[np.int32]
    bucket_start: Int64
    values: Int64


class Postings:
    """Blocks between two flushes. All have one bucket length: a change of rules takes them first."""

    def __init__(self) -> None:
        # As they came, and the rows in them.
        self._fresh: list[Block] = []
        self._fresh_rows = 0
        # Merged ones, each once, and the rows in them.
        self._merged: list[Block] = []
        self._merged_rows = 0

    def __len__(self) -> int:
        return self._fresh_rows + self._merged_rows

    def add(self, block: Block) -> None:
        self._fresh.append(block)
        self._fresh_rows += len(block.row)
        if self._fresh_rows > _MERGE_ROWS:
            merged = _merge(self._fresh)
            self._merged.append(merged)
            self._merged_rows += len(merged.row)
            self._fresh, self._fresh_rows = [], 0

    def take(self) -> Block | None:
        """All of it, each (session, bucket) once; empty afterwards."""
        blocks = self._merged + self._fresh
        self._fresh, self._fresh_rows, self._merged, self._merged_rows = [], 0, [], 0
        return _merge(blocks) if blocks else None


def _merge(blocks: list[Block]) -> Block:
    row, ordinal, customer, bucket_start, values = (np.concatenate(column) for column in zip(*blocks, strict=True))
    # One key: buckets begin on whole minutes. A row's sessions follow each other: a stable sort keeps them apart.
    minute = (bucket_start - bucket_start.min()) // MINUTE_NANOS
    order = np.argsort(minute << 32 | row, kind="stable")
    row, ordinal, customer, bucket_start = row[order], ordinal[order], customer[order], bucket_start[order]
    values = values.take(order, axis=0)
    new = np.empty(len(row), dtype=np.bool_)
    new[0] = True
    new[1:] = (row[1:] != row[:-1]) | (ordinal[1:] != ordinal[:-1]) | (bucket_start[1:] != bucket_start[:-1])
    starts = np.flatnonzero(new)
    merged = np.empty((len(starts), VALUES_WIDTH), dtype=np.int64)
    np.add.reduceat(values[:, :COUNTERS], starts, axis=0, out=merged[:, :COUNTERS])
    merged[:, MIB], merged[:, REST] = segment_sums_memory(values[:, MIB], values[:, REST], starts)
    merged[:, MEASURED] = np.add.reduceat(values[:, MEASURED], starts)
    merged[:, SAMPLES] = np.add.reduceat(values[:, SAMPLES], starts)
    merged[:, PEAK] = np.maximum.reduceat(values[:, PEAK], starts)
    return Block(row[starts], ordinal[starts], customer[starts], bucket_start[starts], merged)
