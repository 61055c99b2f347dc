"""Between the columns and one VM: into plain integers, and back when nothing can fail any more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from billaged.aggregator import state as phases
from billaged.aggregator.columns import (
    EXPLICIT,
    LISTED,
    NEWEST_START,
    NEWEST_STOP,
    NEWEST_STORED,
    PREVIOUS_LOOSE,
    RUNNING,
    SILENCE_FLAGS,
    VANISHED,
    WAS_LISTED,
    Columns,
    Ended,
    Lineage,
    SideTable,
)
from billaged.aggregator.session import Session
from billaged.aggregator.state import NO_MARKS, State
from billaged.aggregator.vm import Vm
from billaged.model.quantity import MemoryTime
from billaged.model.records import COUNTERS

_NO_TIME = -(2**63)
_NOT_OURS = LISTED | WAS_LISTED
_SILENCES = SILENCE_FLAGS & ~VANISHED


def load_vm(columns: Columns, vm_id: str) -> Vm:
    """The VM as the columns have it; one without sessions where they have none. Its timeline is not at hand."""
    vm = Vm(vm_id)
    row = columns.row_of.get(vm_id)
    if row is None:
        return vm
    flags = int(columns.flags[row])
    vm.customer_id = columns.customer_ids[columns.customer[row]]
    session = vm.session = Session(vm_id, int(columns.ordinal[row]), vm.customer_id)
    session.start_ns = int(columns.start[row])
    session.explicit = bool(flags & EXPLICIT)
    session.last_ns = vm.newest_ns = int(columns.last_time[row])
    session.counters = columns.total[row].tolist()
    session.memory_byte_nanos = MemoryTime(int(columns.total_mib[row]), int(columns.total_rest[row])).byte_nanos
    session.gap_ns = int(columns.total_gap[row])
    session.samples = int(columns.samples[row])
    session.peak_bytes = int(columns.peak[row])
    vm.number, vm.highest = columns.lineage.get(row, Lineage(1, session.ordinal))
    vm.is_vanished = bool(flags & VANISHED)
    vm.is_listened_for = bool(flags & _SILENCES)
    vm.newest_start, vm.newest_stop = bool(flags & NEWEST_START), bool(flags & NEWEST_STOP)
    vm.newest_stored = bool(flags & NEWEST_STORED)
    vm.previous_loose = bool(flags & PREVIOUS_LOOSE)
    vm.link_rules = int(columns.link_rules[row])
    vm.follow = int(columns.follow[row])
    if columns.previous_time[row] != _NO_TIME:
        previous = (columns.previous_time[row], columns.previous_memory[row], *columns.previous[row])
        vm.previous = tuple(map(int, previous))
    phase, end_ns, tail_rules = phases.RUNNING, 0, 0
    if not flags & RUNNING and not vm.is_vanished:
        phase = phases.ENDED
        end_ns, vm.newest_ns, tail_rules = columns.ended[row]
        session.end_ns, session.end_kind = end_ns, "stop"
    marks = NO_MARKS
    if columns.mark_slot[row] >= 0:
        marks = tuple(columns.marks.values[columns.mark_slot[row]].tolist())
    vm.state = State(
        phase,
        session.ordinal,
        session.samples > 0,
        session.last_ns,
        int(columns.memory[row]) if session.samples else 0,
        end_ns,
        tail_rules,
        tuple(columns.last[row].tolist()),
        marks,
    )
    slot = columns.window_slot[row]
    session.window_base = columns.windows.values[slot].tolist() if slot >= 0 else session.totals_without_peak()
    return vm


def store_vm(columns: Columns, vm: Vm) -> int:
    """Write a VM with a session back, into a row of its own; its row."""
    session, state = vm.session, vm.state
    if session is None:
        raise ValueError(f"VM {vm.vm_id} has no session")
    row = columns.row_of.get(vm.vm_id)
    if row is None:
        row = columns.add(vm.vm_id)
    columns.ordinal[row] = session.ordinal
    columns.customer[row] = columns.number_of_customer(vm.customer_id)
    columns.start[row] = session.start_ns
    columns.flags[row] = (
        int(columns.flags[row]) & (_NOT_OURS | SILENCE_FLAGS * vm.is_listened_for)
        | vm.is_running * RUNNING
        | session.explicit * EXPLICIT
        | vm.newest_stored * NEWEST_STORED
        | vm.newest_start * NEWEST_START
        | vm.newest_stop * NEWEST_STOP
        | vm.previous_loose * PREVIOUS_LOOSE
        | vm.is_vanished * VANISHED
        | (int(columns.flags[row]) & _SILENCES) * vm.is_listened_for
    )
    columns.last_time[row] = session.last_ns
    columns.memory[row] = state.memory_bytes
    columns.last[row] = state.last
    columns.previous_time[row], columns.previous_memory[row], *columns.previous[row] = (
        (_NO_TIME, 0, *[0] * COUNTERS) if vm.previous is None else vm.previous
    )
    columns.total[row] = session.counters
    columns.total_mib[row], columns.total_rest[row] = MemoryTime.of_byte_nanos(session.memory_byte_nanos)
    columns.total_gap[row] = session.gap_ns
    columns.samples[row] = session.samples
    columns.peak[row] = session.peak_bytes
    columns.link_rules[row] = vm.link_rules
    columns.follow[row] = vm.follow
    columns.dirty[row] = True
    if vm.is_running:
        columns.ended.pop(row, None)
    else:
        newest_ns = session.last_ns if vm.newest_ns is None else vm.newest_ns
        columns.ended[row] = Ended(vm.end_ns, newest_ns, state.tail_rules)
    if vm.number == 1 and vm.highest == session.ordinal:
        columns.lineage.pop(row, None)
    else:
        columns.lineage[row] = Lineage(vm.number, vm.highest)
    _settle(columns.marks, columns.mark_slot, row, state.marks if any(state.marks) else None)
    _settle(columns.windows, columns.window_slot, row, session.window_base)
    return row


def _settle(table: SideTable, slots: NDArray[np.int32], row: int, values: Sequence[int] | None) -> None:
    """Give the row these values in the side table, or none."""
    slot = int(slots[row])
    if values is None:
        if slot >= 0:
            table.release(slot)
            slots[row] = -1
        return
    if slot < 0:
        slot = slots[row] = table.allocate(row)
    table.values[slot] = values
