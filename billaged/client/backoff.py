"""How long to wait before trying again."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from billaged.client.failure import NO_REASON, RETRY_SECONDS_MAX

FIRST_SECONDS = 0.5
LONGEST_SECONDS = 30.0
# Failures that somebody has to do something about: a policy to be changed, a certificate to be renewed, a server
# that answers nonsense.
SLOW_CODES: Final = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED", NO_REASON})
SLOW_LONGEST_SECONDS: Final = 60.0


class Backoff:
    """Doubles from half a second to its longest, less up to half of it by chance: a fleet must not return in step."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._failures = 0

    def after_failure(self, code: str, asked_seconds: float | None = None) -> float:
        """Seconds to wait now; at least what the server asked for, if it did and within reason."""
        longest = SLOW_LONGEST_SECONDS if code in SLOW_CODES else LONGEST_SECONDS
        seconds = min(longest, FIRST_SECONDS * 2.0 ** min(self._failures, 16))
        self._failures += 1
        own = seconds * (1 - self._chance() / 2)
        # Written so that it holds for anything, also for what is no number.
        if asked_seconds is None or not asked_seconds > own:
            return own
        return max(own, min(asked_seconds, RETRY_SECONDS_MAX))

    def another(self) -> Backoff:
        """One that starts from the beginning, with the same chance."""
        return Backoff(self._chance)

    def reset(self) -> None:
        self._failures = 0
