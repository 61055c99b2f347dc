"""The journal's commits, and since when the ledger has not caught up with them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from billaged.telemetry.metrics.histogram import COMMIT_SECONDS, GROUP_RECORDS, Histogram

_MARK_SECONDS: Final = 0.25
_MARKS_MAX: Final = 4_096


class _Mark(NamedTuple):
    """When the group was committed that began with this row."""

    first: int
    at_seconds: float


class JournalMeter:
    """Satisfies ``intake.writer.GroupObserver``: the writer's thread tells it, any thread reads."""

    def __init__(self, monotonic_seconds: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_seconds = monotonic_seconds
        self.commits = Histogram(COMMIT_SECONDS)
        self.group_records = Histogram(GROUP_RECORDS)
        # Guards the marks: not each group has one, only enough of them to tell times by.
        self._lock = threading.Lock()
        self._marks: list[_Mark] = []
        self._apart_seconds = _MARK_SECONDS

    def committed(self, first: int, records: int, seconds: float) -> None:
        """A group of this many rows from ``first`` on is durable; it took so long."""
        self.commits.observe(seconds)
        self.group_records.observe(records)
        now = self._monotonic_seconds()
        with self._lock:
            if self._marks and now - self._marks[-1].at_seconds < self._apart_seconds:
                return
            self._marks.append(_Mark(first, now))
            if len(self._marks) > _MARKS_MAX:
                # The ledger has been stuck for long: fewer will do.
                self._marks = self._marks[::2]
                self._apart_seconds *= 2

    def lag_seconds(self, position: int, ledger_position: int) -> float:
        """How long the oldest row has waited that the ledger lacks, to a quarter of a second."""
        now = self._monotonic_seconds()
        oldest = ledger_position + 1
        with self._lock:
            kept = 0
            while kept + 1 < len(self._marks) and self._marks[kept + 1].first <= oldest:
                kept += 1
            del self._marks[:kept]
            if position < oldest or not self._marks:
                self._apart_seconds = _MARK_SECONDS
                return 0.0
            return max(0.0, now - self._marks[0].at_seconds)
