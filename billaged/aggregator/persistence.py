"""Between the columns and the ledger's session rows, many at a time.

What the fold needs and no report reads is packed into the row's ``state``: int64,
little-endian, in the order of ``STATE``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from billaged.aggregator.changes import Row
from billaged.aggregator.columns import EXPLICIT, RUNNING, SAMPLED, SAMPLED_AT_START, TOTALS_WIDTH, Columns
from billaged.aggregator.effects import SessionRow
from billaged.aggregator.postings import Block
from billaged.model.errors import StorageError
from billaged.model.quantity import MemoryTime
from billaged.model.records import COUNTERS

_VERSION: Final = 1


def _layout() -> tuple[dict[str, slice], int]:
    widths = {
        "version": 1,
        "memory": 1,
        # SAMPLED and SAMPLED_AT_START, over SAMPLED.
        "sampled": 1,
        "last": COUNTERS,
        "marks": COUNTERS,
        "has_origin": 1,
        "origin": COUNTERS + 1,
        "tail": 2,
        # The number of the window that the base is of: another one's is void.
        "window_number": 1,
        "window_base": TOTALS_WIDTH,
    }
    layout, at = {}, 0
    for name, width in widths.items():
        layout[name] = slice(at, at + width)
        at += width
    return layout, at


STATE, _STATE_WIDTH = _layout()
_STATE_BYTES: Final = 8 * _STATE_WIDTH

# Places in a session row.
_VM_ID, _ORDINAL, _CUSTOMER, _START, _EXPLICIT, _LAST, _END, _END_KIND = range(8)
_AMOUNTS: Final = slice(8, 8 + COUNTERS)
_MIB, _REST, _MEASURED, _GAP, _SAMPLES, _PEAK, _NEWEST, _STATE = range(8 + COUNTERS, 16 + COUNTERS)


def session_rows(columns: Columns, rows: NDArray[np.intp], window_number: int) -> list[Row]:
    """These rows as the ledger keeps them, in the order of ``changes.SESSION_COLUMNS``."""
    running = (columns.flags[rows] & RUNNING) != 0
    totals = columns.totals(rows)
    state = _states(columns, rows, window_number).astype("<i8").tobytes()
    vm_id, customer_ids = columns.vm_id, columns.customer_ids
    return list(
        zip(
            [vm_id[row] for row in rows.tolist()],
            columns.ordinal[rows].tolist(),
            [customer_ids[number] for number in columns.customer[rows].tolist()],
            columns.start[rows].tolist(),
            ((columns.flags[rows] & EXPLICIT) != 0).astype(np.int64).tolist(),
            columns.last_time[rows].tolist(),
            [None if runs else end for runs, end in zip(running.tolist(), columns.end[rows].tolist(), strict=True)],
            [None if runs else "stop" for runs in running.tolist()],
            *totals.T.tolist(),
            [1] * len(rows),
            [state[at : at + _STATE_BYTES] for at in range(0, len(state), _STATE_BYTES)],
            strict=True,
        )
    )


def superseded_row(row: SessionRow) -> Row:
    """A session that is its VM's newest no more."""
    fields = row._asdict()
    amounts, byte_nanos = fields.pop("amounts"), fields.pop("memory_byte_nanos")
    values = list(fields.values())
    return (*values[:8], *amounts, *MemoryTime.of_byte_nanos(byte_nanos), *values[8:])


def fact_rows(columns: Columns, block: Block, bucket_ns: int) -> list[Row]:
    """A merged block of postings, in the order of ``changes.FACT_COLUMNS``."""
    vm_id, customer_ids = columns.vm_id, columns.customer_ids
    count = len(block.row)
    return list(
        zip(
            block.bucket_start.tolist(),
            [bucket_ns] * count,
            [vm_id[row] for row in block.row.tolist()],
            block.ordinal.tolist(),
            [customer_ids[number] for number in block.customer.tolist()],
            *block.values.T.tolist(),
            strict=True,
        )
    )


def _states(columns: Columns, rows: NDArray[np.intp], window_number: int) -> NDArray[np.int64]:
    states = np.zeros((len(rows), _STATE_WIDTH), dtype=np.int64)
    states[:, STATE["version"]] = _VERSION
    states[:, STATE["memory"]] = columns.memory[rows][:, None]
    states[:, STATE["sampled"]] = ((columns.flags[rows] & (SAMPLED | SAMPLED_AT_START)) // SAMPLED)[:, None]
    states[:, STATE["last"]] = columns.last[rows]
    states[:, STATE["window_number"]] = -1
    for slots, table, name, flag, value in (
        (columns.mark_slot, columns.marks, "marks", None, 0),
        (columns.origin_slot, columns.origins, "origin", "has_origin", 1),
        (columns.window_slot, columns.windows, "window_base", "window_number", window_number),
    ):
        taken = np.flatnonzero(slots[rows] >= 0)
        states[taken, STATE[name]] = table.values[slots[rows[taken]]]
        if flag is not None:
            states[taken, STATE[flag]] = value
    for index in np.flatnonzero((columns.flags[rows] & RUNNING) == 0):
        states[index, STATE["tail"]] = columns.tails[int(rows[index])]
    return states


def restore(columns: Columns, rows: Sequence[Row], window_number: int) -> None:
    """Put session rows of the ledger into the columns; none of their VMs may be there yet.

    Raises:
        StorageError: a row's state is not one this version wrote.
    """
    if not rows:
        return
    if any(len(row[_STATE]) != _STATE_BYTES for row in rows):
        raise StorageError("the ledger's session state is of another version.", "Use the version that wrote it.")
    states = np.frombuffer(b"".join(row[_STATE] for row in rows), dtype="<i8").reshape(-1, _STATE_WIDTH)
    if (states[:, STATE["version"]] != _VERSION).any():
        raise StorageError("the ledger's session state is of another version.", "Use the version that wrote it.")
    columns.reserve(len(columns) + len(rows))
    at = np.array([columns.add(row[_VM_ID]) for row in rows], dtype=np.intp)
    columns.ordinal[at] = [row[_ORDINAL] for row in rows]
    columns.customer[at] = [columns.number_of_customer(row[_CUSTOMER]) for row in rows]
    columns.start[at] = [row[_START] for row in rows]
    columns.last_time[at] = [row[_LAST] for row in rows]
    columns.end[at] = [row[_END] or 0 for row in rows]
    columns.flags[at] = [
        bool(row[_EXPLICIT]) * EXPLICIT | (row[_END] is None) * RUNNING | sampled * SAMPLED
        for row, sampled in zip(rows, states[:, STATE["sampled"]].ravel().tolist(), strict=True)
    ]
    columns.total[at] = [row[_AMOUNTS] for row in rows]
    columns.total_mib[at] = [row[_MIB] for row in rows]
    columns.total_rest[at] = [row[_REST] for row in rows]
    columns.total_gap[at] = [row[_GAP] for row in rows]
    columns.samples[at] = [row[_SAMPLES] for row in rows]
    columns.peak[at] = [row[_PEAK] for row in rows]
    columns.memory[at] = states[:, STATE["memory"]].ravel()
    columns.last[at] = states[:, STATE["last"]]
    for slots, table, name, taken in (
        (columns.mark_slot, columns.marks, "marks", states[:, STATE["marks"]].any(axis=1)),
        (columns.origin_slot, columns.origins, "origin", states[:, STATE["has_origin"]].ravel() == 1),
        (
            columns.window_slot,
            columns.windows,
            "window_base",
            states[:, STATE["window_number"]].ravel() == window_number,
        ),
    ):
        slots[at[taken]] = table.allocate_many(at[taken])
        table.values[slots[at[taken]]] = states[taken][:, STATE[name]]
    for index, row in enumerate(rows):
        if row[_END] is not None:
            bucket_ns, is_gap = states[index, STATE["tail"]].tolist()
            columns.tails[int(at[index])] = (bucket_ns, bool(is_gap))
