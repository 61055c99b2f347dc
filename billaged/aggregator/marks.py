"""Marks of one counter that are other ones in one walk than in another: for how long that tells nothing."""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from billaged.aggregator.arithmetic import Int64
from billaged.aggregator.state import Marks
from billaged.model.records import COUNTERS


class _Kind(Enum):
    # The highest is another one, all below it are the same.
    TOP = auto()
    # The new walk has one more, the highest; or the old walk has.
    MORE = auto()
    LESS = auto()
    OTHER = auto()


class MarkChange(NamedTuple):
    """How the marks of a counter differ. As long as it does not tell, the old walk's marks say what the new one's are.

    Falls make marks in both walks alike, and reach marks in both alike, below what differs.
    """

    counter: int
    kind: _Kind
    old: tuple[int, int]
    new: tuple[int, int]
    # A value from there on tells.
    lowest: int

    @classmethod
    def of(cls, counter: int, old: Marks, new: Marks) -> MarkChange:
        before, now = (old[counter], old[counter + COUNTERS]), (new[counter], new[counter + COUNTERS])
        top_before, top_now = before[1] or before[0], now[1] or now[0]
        rest_before, rest_now = before[0] if before[1] else 0, now[0] if now[1] else 0
        if top_before and top_now and top_before != top_now and rest_before == rest_now:
            return cls(counter, _Kind.TOP, before, now, min(top_before, top_now))
        if not before[1] and rest_now == before[0] and top_now:
            return cls(counter, _Kind.MORE, before, now, top_now)
        if not now[1] and rest_before == now[0] and top_before:
            return cls(counter, _Kind.LESS, before, now, top_before)
        return cls(counter, _Kind.OTHER, before, now, min(mark for mark in (*before, *now) if mark))

    @property
    def places(self) -> tuple[int, int]:
        """Of its marks, the lower one first."""
        return (self.counter, self.counter + COUNTERS)

    def told_by_marks(
        self, decreased: NDArray[np.bool_], is_first: NDArray[np.bool_], before: Int64, after: Int64
    ) -> NDArray[np.bool_]:
        """Where a fall tells. ``before`` and ``after`` are the old walk's marks around each instant."""
        _, high = self.places
        # First after a start it takes all marks away.
        told: NDArray[np.bool_] = decreased & is_first
        if self.kind is _Kind.MORE:
            # Where the old walk comes to have two, the new one has no room for three.
            told |= after[:, high] != 0
        elif self.kind is _Kind.LESS:
            told |= decreased & (before[:, high] != 0)
        elif self.kind is _Kind.OTHER:
            told |= decreased
        return told

    def replaced(self, marks: Int64) -> tuple[Int64, Int64]:
        """The new walk's marks where the old one's are these."""
        low, high = (marks[:, place] for place in self.places)
        if self.kind is _Kind.TOP:
            top = self.new[1] or self.new[0]
            return np.where(high != 0, low, top), np.where(high != 0, top, 0)
        if self.kind is _Kind.MORE:
            top = self.new[1] or self.new[0]
            return np.where(low != 0, low, top), np.where(low != 0, top, 0)
        if self.kind is _Kind.LESS:
            return np.where(high != 0, low, 0), np.zeros_like(high)
        return np.full_like(low, self.new[0]), np.full_like(high, self.new[1])
