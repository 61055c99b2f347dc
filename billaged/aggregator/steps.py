"""What a step bills: each counter on its own, and whether a machine could have run it."""

from __future__ import annotations

from typing import NamedTuple

from billaged.aggregator.effects import Amounts
from billaged.aggregator.state import Marks
from billaged.model.records import COUNTER_FIELDS, COUNTERS, FoldRules
from billaged.model.time import NANOS


class Step(NamedTuple):
    """What each counter bills, its marks from then on, and what was out of the ordinary."""

    amounts: Amounts
    marks: Marks
    # By name: the last value and this one, of counters that went down in an ordinary step.
    decreased: dict[str, list[int]]
    has_passed: bool


def step_of(last: Amounts, marks: Marks, values: tuple[int, ...], *, is_first: bool) -> Step:
    """From the last values to these. ``is_first``: from an explicit start, where a counter may begin again."""
    amounts, lower, higher, decreased, has_passed = [], [], [], {}, False
    for index, value in enumerate(values):
        before, low, high = last[index], marks[index], marks[COUNTERS + index]
        if value >= before:
            base, left = _passed(before, low, high, value)
            amounts.append(value - base)
            has_passed = has_passed or left != (low, high)
            low, high = left
        elif is_first:
            # It counts from zero.
            amounts.append(value)
            low = high = 0
        else:
            amounts.append(0)
            low, high = _marked(before, low, high)
            decreased[COUNTER_FIELDS[index]] = [before, value]
        lower.append(low)
        higher.append(high)
    return Step(tuple(amounts), (*lower, *higher), decreased, has_passed)  # type: ignore[arg-type]


def baseline_marks(last: Amounts, marks: Marks, values: tuple[int, ...]) -> Marks:
    """The marks after the first sample of an implicit session, which bills nothing."""
    pairs = [
        _marked(before, low, high) if value < before else _passed(before, low, high, value)[1]
        for before, low, high, value in zip(last, marks, marks[COUNTERS:], values, strict=False)
    ]
    return (*(low for low, _ in pairs), *(high for _, high in pairs))


def _marked(before: int, low: int, high: int) -> tuple[int, int]:
    """The marks after a fall from ``before``, which is below both."""
    return before, high or low


def _passed(before: int, low: int, high: int, value: int) -> tuple[int, tuple[int, int]]:
    """What a value at or above the last one is counted from, and the marks that are left."""
    if 0 < high <= value:
        return high, (0, 0)
    if 0 < low <= value:
        return low, (high, 0)
    return before, (low, high)


def plausible(amounts: Amounts, step_ns: int, rules: FoldRules) -> bool:
    allowed_ns = step_ns + NANOS
    if amounts[0] > rules.max_cores * allowed_ns:
        return False
    return max(amounts[1:]) <= rules.max_gigabytes_per_second * allowed_ns
