"""Where a generator's choices come from: a seed (fast, for long runs) or hypothesis (which shrinks)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, TypeVar

from hypothesis import strategies as st

Choice = TypeVar("Choice")


class Chooser(Protocol):
    def between(self, low: int, high: int) -> int:
        """An integer, both ends included."""

    def pick(self, options: Sequence[Choice]) -> Choice:
        """One of them. The dullest stands first: that is where hypothesis shrinks to."""


class SeededChooser:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def between(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def pick(self, options: Sequence[Choice]) -> Choice:
        return self._random.choice(options)


class DrawnChooser:
    """Choices drawn inside a composite strategy."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def between(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def pick(self, options: Sequence[Choice]) -> Choice:
        return options[self._draw(st.integers(0, len(options) - 1))]
