"""Between the columns and one VM: into plain integers, and back when nothing can fail any more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from billaged.aggregator.columns import EXPLICIT, RUNNING, SAMPLED, SAMPLED_AT_START, Columns, SideTable
from billaged.aggregator.vm import Tail, Vm
from billaged.model.quantity import MemoryTime


def load_vm(columns: Columns, vm_id: str) -> Vm:
    """The VM as the columns have it; one without sessions where they have none."""
    vm = Vm(vm_id)
    row = columns.row_of.get(vm_id)
    if row is None:
        return vm
    flags = int(columns.flags[row])
    vm.ordinal = int(columns.ordinal[row])
    vm.customer_id = columns.customer_ids[columns.customer[row]]
    vm.start_ns = int(columns.start[row])
    vm.explicit = bool(flags & EXPLICIT)
    vm.running = bool(flags & RUNNING)
    vm.sampled = bool(flags & SAMPLED)
    vm.sampled_at_start = bool(flags & SAMPLED_AT_START)
    vm.end_ns = int(columns.end[row])
    vm.last_ns = int(columns.last_time[row])
    vm.memory_bytes = int(columns.memory[row])
    vm.last = columns.last[row].tolist()
    if columns.mark_slot[row] >= 0:
        vm.marks = columns.marks.values[columns.mark_slot[row]].tolist()
    if columns.origin_slot[row] >= 0:
        *origin, vm.previous_end_ns = columns.origins.values[columns.origin_slot[row]].tolist()
        vm.origin = tuple(origin)
    vm.tail = Tail(*columns.tails.get(row, (0, False)))
    vm.counters = columns.total[row].tolist()
    vm.memory_byte_nanos = MemoryTime(int(columns.total_mib[row]), int(columns.total_rest[row])).byte_nanos
    vm.gap_ns = int(columns.total_gap[row])
    vm.samples = int(columns.samples[row])
    vm.peak_bytes = int(columns.peak[row])
    slot = columns.window_slot[row]
    vm.window_base = columns.windows.values[slot].tolist() if slot >= 0 else vm.totals_without_peak()
    return vm


def store_vm(columns: Columns, vm: Vm) -> int:
    """Write a VM back, into a row of its own; its row."""
    row = columns.row_of.get(vm.vm_id)
    if row is None:
        row = columns.add(vm.vm_id)
    columns.ordinal[row] = vm.ordinal
    columns.customer[row] = columns.number_of_customer(vm.customer_id)
    columns.start[row] = vm.start_ns
    sampled = vm.sampled * SAMPLED | vm.sampled_at_start * SAMPLED_AT_START
    columns.flags[row] = vm.explicit * EXPLICIT | vm.running * RUNNING | sampled
    columns.end[row] = vm.end_ns
    columns.last_time[row] = vm.last_ns
    columns.memory[row] = vm.memory_bytes
    columns.last[row] = vm.last
    columns.total[row] = vm.counters
    columns.total_mib[row], columns.total_rest[row] = MemoryTime.of_byte_nanos(vm.memory_byte_nanos)
    columns.total_gap[row] = vm.gap_ns
    columns.samples[row] = vm.samples
    columns.peak[row] = vm.peak_bytes
    columns.dirty[row] = True
    if vm.running:
        columns.tails.pop(row, None)
    else:
        columns.tails[row] = vm.tail
    _settle(columns.marks, columns.mark_slot, row, vm.marks if any(vm.marks) else None)
    origin = None if vm.origin is None else (*vm.origin, vm.previous_end_ns)
    _settle(columns.origins, columns.origin_slot, row, origin)
    _settle(columns.windows, columns.window_slot, row, vm.window_base)
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
