"""Lines that whoever can connect may cause: each is said once a second at most, with how often it was repeated."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Final

_SAID_AGAIN_SECONDS: Final = 1.0
# Lines are told apart by their text before anything is put in; of those there are few.
_KEPT_MAX: Final = 256


class Repeats(logging.Filter):
    """For loggers of what strangers do. Lets errors pass: those are our own."""

    def __init__(self) -> None:
        super().__init__()
        self._said_at: dict[str, float] = {}  # monotonic seconds
        self._repeated: Counter[str] = Counter()  # since then

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            return True
        line, now = str(record.msg), time.monotonic()
        said_at = self._said_at.get(line)
        if said_at is not None and now - said_at < _SAID_AGAIN_SECONDS:
            self._repeated[line] += 1
            return False
        if len(self._said_at) >= _KEPT_MAX:
            self._said_at.clear()
            self._repeated.clear()
        self._said_at[line] = now
        if repeated := self._repeated.pop(line, 0):
            record.repeated = repeated
        return True
