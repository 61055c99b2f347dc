"""What is going to happen, in the order of simulated time."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

Act = Callable[[], None]


class Agenda:
    """True time, nanoseconds since the epoch; nobody in the simulation sees it but through a clock."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns
        self._acts: list[tuple[int, int, Act]] = []
        # Of two acts at one time, the one that was noted first.
        self._numbers = count()

    def after(self, delay_ns: int, act: Act) -> None:
        heapq.heappush(self._acts, (self.now_ns + max(delay_ns, 0), next(self._numbers), act))

    def run_until(self, end_ns: int) -> None:
        """All that happens before ``end_ns``, with what comes of it."""
        while self._acts and self._acts[0][0] < end_ns:
            self.now_ns, _, act = heapq.heappop(self._acts)
            act()
        self.now_ns = end_ns
