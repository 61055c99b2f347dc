"""The audit log: one line for each denied request, with who, what and why.

Whoever is denied may try ten thousand times a second. The same denial is said once a second
at most, with how often it was repeated; the counters count each.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from billaged.model.time import NANOS

_log: Final = logging.getLogger("billaged.audit")

_SAID_AGAIN_NANOS: Final = NANOS
_KEPT_MAX: Final = 4096
_CHARACTERS_MAX: Final = 255


class _Denial(NamedTuple):
    outcome: str
    identity: str
    method: str
    reason: str


class Audit:
    """Used by one thread. ``denied`` counts by outcome: ``unauthenticated``, ``forbidden``."""

    def __init__(self, monotonic_nanos: Callable[[], int]) -> None:
        self._monotonic_nanos = monotonic_nanos
        self.denied: Counter[str] = Counter()
        self._said_ns: dict[_Denial, int] = {}  # when each was last said
        self._repeated: Counter[_Denial] = Counter()  # how often since then

    def deny(self, outcome: str, identity: str, method: str, reason: str, remote: str) -> None:
        """Note that a request was denied. ``identity`` is what was claimed, where it was not proved."""
        self.denied[outcome] += 1
        denial = _Denial(outcome, _line(identity), _line(method), _line(reason))
        now_ns = self._monotonic_nanos()
        said_ns = self._said_ns.get(denial)
        if said_ns is not None and now_ns - said_ns < _SAID_AGAIN_NANOS:
            self._repeated[denial] += 1
            return
        if len(self._said_ns) >= _KEPT_MAX:
            self._forget(now_ns)
        self._said_ns[denial] = now_ns
        facts = {**denial._asdict(), "remote": _line(remote)}
        if repeated := self._repeated.pop(denial, 0):
            facts["repeated"] = repeated
        _log.warning("request denied", extra=facts)

    def _forget(self, now_ns: int) -> None:
        """Make room; what was repeated and will not be said with a next one is said now."""
        for denial, said_ns in list(self._said_ns.items()):
            if now_ns - said_ns >= _SAID_AGAIN_NANOS:
                del self._said_ns[denial]
        if len(self._said_ns) >= _KEPT_MAX:
            self._said_ns.clear()
        gone = [denial for denial in self._repeated if denial not in self._said_ns]
        repeated = sum(self._repeated.pop(denial) for denial in gone)
        if repeated:
            _log.warning("requests denied", extra={"denials": len(gone), "repeated": repeated})


def _line(text: str) -> str:
    """Callers choose parts of it: bounded, and nothing in it may look like the end of a line."""
    short = text if len(text) <= _CHARACTERS_MAX else text[: _CHARACTERS_MAX - 1] + "…"
    return "".join(character if character.isprintable() else "?" for character in short)
