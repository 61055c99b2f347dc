"""The states of a timeline in columns: what a point changes far beyond it need not be walked instant by instant.

A point may leave everything on from some instant as it was but for a mark, or for what starts and stops carry on
from the sample before them. Nothing is billed otherwise then until that tells; the columns say where that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from billaged.aggregator.arithmetic import Int64
from billaged.aggregator.effects import Amounts
from billaged.aggregator.instant import Kept
from billaged.aggregator.marks import MarkChange
from billaged.aggregator.state import MARKS, RUNNING, State
from billaged.model.records import COUNTERS

# A state as a row: its fields up to the amounts, the newest counters, the marks.
_SINGLE: Final = 7
_HAS_SAMPLES: Final = 2
_LAST: Final = slice(_SINGLE, _SINGLE + COUNTERS)
_MARKS: Final = slice(_LAST.stop, _LAST.stop + MARKS)
_CARRIED: Final = slice(_LAST.start, _MARKS.stop)
_WIDTH: Final = _MARKS.stop

_SAMPLE, _START, _CLOSED, _KNOWN = (1 << bit for bit in range(4))
_ROOM: Final = 256


class Stretch(NamedTuple):
    """Instants, from one index to before another, whose states take new values in some of the columns."""

    start: int
    end: int
    columns: slice | list[int]
    # One for each column; or for each instant and column.
    values: Sequence[int] | Int64


class Skipped(NamedTuple):
    """``stretch.end`` is where the walks go on, standing so."""

    stretch: Stretch
    old: State
    new: State


class Far:
    """One row an instant, in the order of the timeline."""

    def __init__(self, kept: Sequence[Kept]) -> None:
        self._count = len(kept)
        room = self._count + _ROOM
        # Each column in one piece: they are looked at one by one.
        self._after: Int64 = np.zeros((room, _WIDTH), dtype=np.int64, order="F")
        self._values: Int64 = np.zeros((room, COUNTERS), dtype=np.int64, order="F")
        self._sorts: NDArray[np.uint8] = np.zeros(room, dtype=np.uint8)
        self._after[: self._count] = [_row_of(each.after) for each in kept]
        self._values[: self._count] = [_values_of(each) for each in kept]
        self._sorts[: self._count] = [_sort_of(each) for each in kept]

    def copy(self) -> Far:
        twin = Far.__new__(Far)
        twin._count = self._count
        twin._after, twin._values = self._after.copy(order="F"), self._values.copy(order="F")
        twin._sorts = self._sorts.copy()
        return twin

    def after(self, index: int) -> State:
        return _state_of(self._after[index].tolist())

    def insert(self, index: int, kept: Kept) -> None:
        if self._count == len(self._sorts):
            for name in ("_after", "_values", "_sorts"):
                array = getattr(self, name)
                room = np.zeros_like(array[: max(_ROOM, len(array) // 8)])
                setattr(self, name, np.asfortranarray(np.concatenate([array, room])))
        for array in (self._after, self._values, self._sorts):
            array[index + 1 : self._count + 1] = array[index : self._count]
        self._count += 1
        self.replace(index, kept)

    def replace(self, index: int, kept: Kept) -> None:
        self._after[index], self._values[index], self._sorts[index] = (
            _row_of(kept.after),
            _values_of(kept),
            _sort_of(kept),
        )

    def drop(self, first: int, end: int) -> None:
        for array in (self._after, self._values, self._sorts):
            array[first : self._count - (end - first)] = array[end : self._count]
        self._count -= end - first

    def write(self, stretch: Stretch) -> None:
        self._after[stretch.start : stretch.end, stretch.columns] = stretch.values

    def skip(self, at: int, old: State, new: State) -> Skipped | None:
        """As far as both walks bill the same from the instant ``at`` on. None where they may differ at once."""
        if old.phase == new.phase != RUNNING and not self._sorts[at] & (_SAMPLE | _START):
            # A stop when nothing runs changes nothing.
            end = self._next(at, _SAMPLE | _START)
            return Skipped(Stretch(at, end, slice(None), tuple(_row_of(new))), old, new)
        if new._replace(last=old.last, marks=old.marks) != old:
            return None
        if not self._sorts[at] & _SAMPLE:
            end = self._next(at, _SAMPLE)
            before = self.after(end - 1)
            stretch = Stretch(at, end, _CARRIED, (*new.last, *new.marks))
            return Skipped(stretch, before, before._replace(last=new.last, marks=new.marks))
        if new.last != old.last:
            return None
        return self._skip_marks(at, old, new)

    def _skip_marks(self, at: int, old: State, new: State) -> Skipped | None:
        changes = [
            MarkChange.of(index, old.marks, new.marks)
            for index in range(COUNTERS)
            if old.marks[index::COUNTERS] != new.marks[index::COUNTERS]
        ]
        end = self._next_tell(at, changes)
        if end == at:
            return None
        before = self.after(end - 1)
        marks, columns, values = list(before.marks), [], []
        for change in changes:
            for place, column in zip(change.places, change.replaced(self._after[at:end, _MARKS]), strict=True):
                marks[place] = int(column[-1])
                columns.append(_MARKS.start + place)
                values.append(column)
        stretch = Stretch(at, end, columns, np.stack(values, axis=1))
        return Skipped(stretch, before, before._replace(marks=tuple(marks)))

    def _next(self, at: int, sorts: int) -> int:
        """The first index from there on with one of these sorts; the end where there is none."""
        found = (self._sorts[at : self._count] & sorts) != 0
        index = int(found.argmax())
        return at + index if found[index] else self._count

    def _next_tell(self, at: int, changes: Sequence[MarkChange]) -> int:
        """The first index from there on where one of the changed marks may tell."""
        start, size = at, 64
        while start < self._count:
            end = min(start + size, self._count)
            tells = self._tells(start, end, changes)
            index = int(tells.argmax())
            if tells[index]:
                return start + index
            start, size = end, size * 16
        return self._count

    def _tells(self, start: int, end: int, changes: Sequence[MarkChange]) -> NDArray[np.bool_]:
        sorts, values = self._sorts[start:end], self._values[start:end]
        before, after = self._after[start - 1 : end - 1], self._after[start:end]
        is_sample, is_closed = (sorts & _SAMPLE) != 0, (sorts & _CLOSED) != 0
        is_first = ((sorts & _START) != 0) | (before[:, _HAS_SAMPLES] == 0)
        # What was before is kept of such an instant: that has to change, too.
        tells: NDArray[np.bool_] = (sorts & _KNOWN) != 0
        for change in changes:
            value = values[:, change.counter]
            decreased = (value < before[:, _LAST.start + change.counter]) & is_sample & ~is_closed
            marks_before, marks_after = before[:, _MARKS], after[:, _MARKS]
            tells |= is_sample & (value >= change.lowest)
            tells |= change.told_by_marks(decreased, is_first, marks_before, marks_after)
        return tells


def _row_of(state: State) -> list[int]:
    return [*state[:_SINGLE], *state.last, *state.marks]


def _state_of(row: list[int]) -> State:
    phase, ordinal, has_samples, last_ns, memory_bytes, end_ns, tail_rules = row[:_SINGLE]
    last: Amounts = tuple(row[_LAST])  # type: ignore[assignment]
    marks = tuple(row[_MARKS])
    return State(phase, ordinal, bool(has_samples), last_ns, memory_bytes, end_ns, tail_rules, last, marks)


def _values_of(kept: Kept) -> tuple[int, ...]:
    return (0,) * COUNTERS if kept.instant.sample is None else kept.instant.sample[1:]


def _sort_of(kept: Kept) -> int:
    instant = kept.instant
    return (
        (instant.sample is not None) * _SAMPLE
        | instant.has_start * _START
        | (not (kept.is_open or kept.is_first)) * _CLOSED
        | (not kept.is_open and kept.before is not None) * _KNOWN
    )
