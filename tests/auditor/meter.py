"""A meter: what a VM remembers of one counter, across its sessions."""

from __future__ import annotations


class Meter:
    """The counter's last value and its mark, the highest value before a decrease. None: there is none."""

    def __init__(self) -> None:
        self.last: int | None = None
        self.mark: int | None = None

    def fell(self, value: int) -> bool:
        return self.last is not None and value < self.last

    def ordinary_amount(self, value: int) -> int:
        """What an ordinary step to ``value`` bills.

        Raises:
            ValueError: there was no value before, so there is no step.
        """
        if self.last is None:
            raise ValueError("an ordinary step needs a value before it")
        if value < self.last:
            return 0
        base = self.mark if self.mark is not None and self.mark <= value else self.last
        return value - base

    def first_amount(self, value: int) -> int:
        """What the first step after an explicit start bills."""
        if self.last is None or value < self.last:
            return value
        return self.ordinary_amount(value)

    def ordinary_step(self, value: int) -> int:
        amount = self.ordinary_amount(value)
        self._remember(value)
        return amount

    def first_step(self, value: int) -> int:
        amount = self.first_amount(value)
        if self.fell(value):
            # The start explains the decrease: the counter counts from zero.
            self.mark = None
            self.last = value
        else:
            self._remember(value)
        return amount

    def baseline(self, value: int) -> int:
        """Take the baseline of an implicit session, which bills nothing.

        Returns what a first step would have billed: a start that turns up later asks for it.
        """
        amount = self.first_amount(value)
        self._remember(value)
        return amount

    def _remember(self, value: int) -> None:
        if self.last is not None and value < self.last:
            self.mark = self.last if self.mark is None else max(self.mark, self.last)
        elif self.mark is not None and self.mark <= value:
            self.mark = None
        self.last = value
