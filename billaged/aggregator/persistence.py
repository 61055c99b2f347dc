"""Between the columns and the ledger's session rows, many at a time.

What the fold needs and no report reads is packed into the row's ``state``: int64,
little-endian, in the order of ``STATE``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from billaged.aggregator import session as place
from billaged.aggregator.changes import Row
from billaged.aggregator.columns import EXPLICIT, RUNNING, TOTALS_WIDTH, VANISHED, Columns, Ended, Lineage
from billaged.aggregator.postings import Block
from billaged.aggregator.state import MARKS
from billaged.model.errors import StorageError
from billaged.model.records import COUNTERS

_VERSION: Final = 2


def _layout() -> tuple[dict[str, slice], int]:
    widths = {
        "version": 1,
        # Those of columns.py, all of them.
        "flags": 1,
        "memory": 1,
        "last": COUNTERS,
        "marks": MARKS,
        "previous_time": 1,
        "previous_memory": 1,
        "previous": COUNTERS,
        "follow": 1,
        "link_rules": 1,
        "heard": 1,
        # -1 where it has none.
        "unlisted_at": 1,
        "lineage": 2,
        # The newest instant's time and the tail's rules, of a session that has ended.
        "ended": 2,
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
# Columns that are packed as they are.
_SINGLE: Final = ("flags", "memory", "previous_time", "previous_memory", "follow", "link_rules", "heard")


def session_rows(columns: Columns, rows: NDArray[np.intp], window_number: int) -> list[Row]:
    """These rows as the ledger keeps them, in the order of ``changes.SESSION_COLUMNS``."""
    ends: list[int | None] = [None] * len(rows)
    end_kinds: list[str | None] = [None] * len(rows)
    for index in np.flatnonzero((columns.flags[rows] & RUNNING) == 0).tolist():
        row = int(rows[index])
        ends[index] = columns.ended[row].end_ns
        end_kinds[index] = "vanished" if columns.flags[row] & VANISHED else "stop"
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
            ends,
            end_kinds,
            *columns.totals(rows).T.tolist(),
            [1] * len(rows),
            [state[at : at + _STATE_BYTES] for at in range(0, len(state), _STATE_BYTES)],
            strict=True,
        )
    )


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
    for name in _SINGLE:
        states[:, STATE[name]] = getattr(columns, name)[rows][:, None]
    states[:, STATE["last"]] = columns.last[rows]
    states[:, STATE["previous"]] = columns.previous[rows]
    states[:, STATE["unlisted_at"]] = -1
    states[:, STATE["window_number"]] = -1
    states[:, STATE["lineage"]] = 1
    states[:, STATE["lineage"].stop - 1] = columns.ordinal[rows]
    for slots, table, name in (
        (columns.mark_slot, columns.marks, "marks"),
        (columns.window_slot, columns.windows, "window_base"),
    ):
        taken = np.flatnonzero(slots[rows] >= 0)
        states[taken, STATE[name]] = table.values[slots[rows[taken]]]
        if name == "window_base":
            states[taken, STATE["window_number"]] = window_number
    for index, row in enumerate(rows.tolist()) if columns.lineage or columns.unlisted_at else ():
        if row in columns.lineage:
            states[index, STATE["lineage"]] = columns.lineage[row]
        if row in columns.unlisted_at:
            states[index, STATE["unlisted_at"]] = columns.unlisted_at[row]
    for index in np.flatnonzero((columns.flags[rows] & RUNNING) == 0).tolist():
        states[index, STATE["ended"]] = columns.ended[int(rows[index])][1:]
    return states


def restore(columns: Columns, rows: Sequence[Row], window_number: int) -> list[int]:
    """Put session rows of the ledger into the columns; none of their VMs may be there yet. Where they are now.

    Raises:
        StorageError: a row's state is not one this version wrote.
    """
    if not rows:
        return []
    if any(len(row[place.STATE]) != _STATE_BYTES for row in rows):
        raise of_another_version()
    states = np.frombuffer(b"".join(row[place.STATE] for row in rows), dtype="<i8").reshape(-1, _STATE_WIDTH)
    if (states[:, STATE["version"]] != _VERSION).any():
        raise of_another_version()
    columns.reserve(len(columns) + len(rows))
    places = [columns.add(row[place.VM_ID]) for row in rows]
    at = np.array(places, dtype=np.intp)
    columns.ordinal[at] = [row[place.ORDINAL] for row in rows]
    columns.customer[at] = [columns.number_of_customer(row[place.CUSTOMER]) for row in rows]
    columns.start[at] = [row[place.START] for row in rows]
    columns.last_time[at] = [row[place.LAST] for row in rows]
    columns.total[at] = [row[place.AMOUNTS] for row in rows]
    columns.total_mib[at] = [row[place.MIB] for row in rows]
    columns.total_rest[at] = [row[place.REST] for row in rows]
    columns.total_gap[at] = [row[place.GAP] for row in rows]
    columns.samples[at] = [row[place.SAMPLES] for row in rows]
    columns.peak[at] = [row[place.PEAK] for row in rows]
    for name in _SINGLE:
        getattr(columns, name)[at] = states[:, STATE[name]].ravel()
    columns.last[at] = states[:, STATE["last"]]
    columns.previous[at] = states[:, STATE["previous"]]
    windows = states[:, STATE["window_number"]].ravel() == window_number
    for slots, table, name, taken in (
        (columns.mark_slot, columns.marks, "marks", states[:, STATE["marks"]].any(axis=1)),
        (columns.window_slot, columns.windows, "window_base", windows),
    ):
        slots[at[taken]] = table.allocate_many(at[taken])
        table.values[slots[at[taken]]] = states[taken][:, STATE[name]]
    _restore_few(columns, rows, places, states)
    return places


def _restore_few(columns: Columns, rows: Sequence[Row], places: Sequence[int], states: NDArray[np.int64]) -> None:
    """What is there for few rows only."""
    lineage, unlisted_at = states[:, STATE["lineage"]], states[:, STATE["unlisted_at"]].ravel()
    ordinal = [row[place.ORDINAL] for row in rows]
    for index in np.flatnonzero((lineage[:, 0] != 1) | (lineage[:, 1] != ordinal)).tolist():
        columns.lineage[places[index]] = Lineage(*lineage[index].tolist())
    for index in np.flatnonzero(unlisted_at >= 0).tolist():
        columns.unlisted_at[places[index]] = int(unlisted_at[index])
    for index, row in enumerate(rows):
        if row[place.END] is not None:
            columns.ended[places[index]] = Ended(row[place.END], *states[index, STATE["ended"]].tolist())


def of_another_version() -> StorageError:
    return StorageError(
        "the ledger was folded by the rules of an earlier version, and cannot go on by those of this one.",
        "Stop the daemon, fold the journal anew with 'billaged journal replay --into NEW', and put that in its place"
        " with 'billaged ledger restore NEW'.",
    )
