"""Counts with the names of VMs on them: so many at most, and those that are used."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

_log: Final = logging.getLogger("billaged.telemetry")

LABELLED_MAX: Final = 10_000
# One that was not counted for so long makes room for another.
_IDLE_SECONDS: Final = 3600.0
OTHER: Final = "other"

Key = tuple[str, ...]


class LabelledCounts:
    """One thread adds, any reads. What has no place of its own is counted under ``other``; nothing ever decreases."""

    def __init__(
        self, width: int, most: int = LABELLED_MAX, monotonic_seconds: Callable[[], float] = time.monotonic
    ) -> None:
        """``width`` is how many labels a key has."""
        self._other: Key = (OTHER,) * width
        self._most = most
        self._monotonic_seconds = monotonic_seconds
        # Guards what follows.
        self._lock = threading.Lock()
        self._counts: dict[Key, int] = {}
        self._used_seconds: dict[Key, float] = {}
        self._other_count = 0
        self._looked_seconds = 0.0
        self._is_full = False

    def add(self, counts: Iterable[tuple[Key, int]]) -> None:
        """Add to the keys' counts; what is not positive is left out."""
        now = self._monotonic_seconds()
        with self._lock:
            for key, count in counts:
                if count <= 0:
                    continue
                if key != self._other and (key in self._counts or self._has_room(now)):
                    self._counts[key] = self._counts.get(key, 0) + count
                    self._used_seconds[key] = now
                else:
                    self._other_count += count

    def read(self) -> list[tuple[Key, int]]:
        with self._lock:
            read = list(self._counts.items())
            if self._other_count:
                read.append((self._other, self._other_count))
            return read

    @property
    def is_full(self) -> bool:
        """Whether there ever were more keys than places."""
        return self._is_full

    def _has_room(self, now: float) -> bool:
        if len(self._counts) < self._most:
            return True
        if self._is_full and now - self._looked_seconds < _IDLE_SECONDS / 10:
            return False
        self._looked_seconds = now
        for key in [key for key, used in self._used_seconds.items() if now - used > _IDLE_SECONDS]:
            del self._counts[key], self._used_seconds[key]
        if len(self._counts) < self._most:
            return True
        if not self._is_full:
            self._is_full = True
            _log.warning("metrics have labels for %d VMs; those of more are summed up as %r", self._most, OTHER)
        return False
