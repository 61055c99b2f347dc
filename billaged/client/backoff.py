"""How long to wait before trying again."""

from __future__ import annotations

import random
from collections.abc import Callable

FIRST_SECONDS = 0.5
LONGEST_SECONDS = 30.0


class Backoff:
    """Doubles from half a second to thirty, less up to half of it by chance: a fleet must not return in step."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._failures = 0

    def after_failure(self, asked_seconds: float | None = None) -> float:
        """Seconds to wait now; at least what the server asked for, if it did."""
        longest = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(self._failures, 16))
        self._failures += 1
        own = longest * (1 - self._chance() / 2)
        return max(own, min(asked_seconds or 0.0, LONGEST_SECONDS))

    def reset(self) -> None:
        self._failures = 0
