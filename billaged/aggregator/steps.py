"""What a step bills: each counter on its own, and whether a machine could have run it."""

from __future__ import annotations

from billaged.aggregator.effects import Amounts
from billaged.aggregator.vm import Context, Sample, Vm, record
from billaged.model.records import COUNTER_FIELDS, FoldRules
from billaged.model.time import NANOS


def first_amounts(vm: Vm, sample: Sample) -> Amounts:
    """What each counter bills at the first sample after a start; moves the marks."""
    amounts = []
    for index, value in enumerate(sample[2:]):
        if not vm.sampled or value < vm.last[index]:
            # It counts from zero.
            amounts.append(value)
            vm.marks[index] = 0
        else:
            amounts.append(value - _base(vm, index, value))
    return tuple(amounts)  # type: ignore[return-value]


def step_amounts(vm: Vm, sample: Sample, item: int, context: Context) -> Amounts:
    """What each counter bills from the last value to this one; moves the marks, records decreases."""
    amounts, decreased = [], {}
    for index, value in enumerate(sample[2:]):
        last = vm.last[index]
        if value < last:
            amounts.append(0)
            vm.marks[index] = max(vm.marks[index], last)
            decreased[COUNTER_FIELDS[index]] = [last, value]
        else:
            amounts.append(value - _base(vm, index, value))
    if decreased:
        record(vm, context, "counter_reset", sample[0], {"counters": decreased}, item)
    return tuple(amounts)  # type: ignore[return-value]


def _base(vm: Vm, index: int, value: int) -> int:
    """What a value at or above the last one is counted from: the mark, once it is reached."""
    mark = vm.marks[index]
    if 0 < mark <= value:
        vm.marks[index] = 0
        return mark
    return vm.last[index]


def plausible(amounts: Amounts, step_ns: int, rules: FoldRules) -> bool:
    allowed_ns = step_ns + NANOS
    if amounts[0] > rules.max_cores * allowed_ns:
        return False
    return max(amounts[1:]) <= rules.max_gigabytes_per_second * allowed_ns
