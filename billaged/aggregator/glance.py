"""What may be looked at while the fold is at work."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar

_T = TypeVar("_T")

# The fold mostly holds the lock for milliseconds; for a second and more where somebody sends many points into the past.
_WAIT_SECONDS: Final = 0.05


class Glance(Generic[_T]):
    """One thing that is read under a lock, or as it was the last time: who looks must not hang with the fold."""

    def __init__(self, lock: threading.Lock, read: Callable[[], _T]) -> None:
        """``read`` gives what nobody changes afterwards."""
        self._lock = lock
        self._read = read
        self._last: _T | None = None

    def look(self) -> _T:
        """Only the first look waits for as long as it takes."""
        last = self._last
        if last is not None and not self._lock.acquire(timeout=_WAIT_SECONDS):
            return last
        if last is None:
            self._lock.acquire()
        try:
            self._last = last = self._read()
        finally:
            self._lock.release()
        return last
