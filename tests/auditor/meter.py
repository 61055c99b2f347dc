"""A meter: what a VM remembers of one counter, along its timeline and from one timeline to the next."""

from __future__ import annotations

from typing import NamedTuple


class Meter(NamedTuple):
    """The counter's last value, and its marks, the highest first: values before decreases, not reached again since."""

    last: int | None = None
    marks: tuple[int, ...] = ()

    def falls(self, value: int) -> bool:
        return self.last is not None and value < self.last

    def passes(self, value: int) -> bool:
        """Whether an ordinary step to ``value`` passes a mark, which then is gone."""
        return not self.falls(value) and any(mark <= value for mark in self.marks)

    def ordinary_amount(self, value: int) -> int:
        """What an ordinary step to ``value`` bills.

        Raises:
            ValueError: there was no value before, so there is no step.
        """
        if self.last is None:
            raise ValueError("an ordinary step needs a value before it")
        if value < self.last:
            return 0
        return value - max((mark for mark in self.marks if mark <= value), default=self.last)

    def first_amount(self, value: int) -> int:
        """What the first step after an explicit start bills."""
        if self.last is None or value < self.last:
            return value
        return self.ordinary_amount(value)

    def after(self, value: int) -> Meter:
        """The meter after an ordinary step or a baseline."""
        if self.last is not None and value < self.last:
            # The highest one and the newest one.
            return Meter(value, (*self.marks[:1], self.last))
        return Meter(value, tuple(mark for mark in self.marks if mark > value))

    def after_first(self, value: int) -> Meter:
        """The meter after the first step that follows an explicit start."""
        # The start explains the decrease: the counter counts from zero.
        return Meter(value) if self.falls(value) else self.after(value)
