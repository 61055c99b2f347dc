"""Requests: how each ended, and how long it took."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from billaged.telemetry.metrics.histogram import REQUEST_SECONDS, Counted, Histogram

# What the doors answer with; there from the beginning, so that the first of a kind is seen as an increase.
CODES: Final = (
    "OK", "CANCELLED", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "PERMISSION_DENIED", "UNAUTHENTICATED",
    "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNKNOWN",
)  # fmt: skip
_UNKNOWN: Final = "UNKNOWN"


class Ended(NamedTuple):
    """Requests of one method at one door. ``durations`` is None of a stream: that lasts as long as somebody watches."""

    door: str
    method: str
    by_code: dict[str, int]
    durations: Counted | None


class DoorMeter:
    """Satisfies ``doors.ports.Meter``: counts one door's requests, on its event loop."""

    def __init__(self, door: str, unary: Sequence[str], streams: Sequence[str]) -> None:
        self._door = door
        self._methods = {name: _Method(Histogram(REQUEST_SECONDS)) for name in unary}
        self._methods |= {name: _Method(None) for name in streams}

    def of(self, method: str) -> Callable[[str, float], None]:
        return self._methods[method].ended

    def read(self) -> Iterator[Ended]:
        for name, method in self._methods.items():
            durations = method.durations
            yield Ended(self._door, name, dict(method.codes), None if durations is None else durations.counted())


class _Method:
    __slots__ = ("codes", "durations")

    def __init__(self, durations: Histogram | None) -> None:
        self.codes = dict.fromkeys(CODES, 0)
        self.durations = durations

    def ended(self, code: str, seconds: float) -> None:
        self.codes[code if code in self.codes else _UNKNOWN] += 1
        if self.durations is not None:
            self.durations.observe(seconds)
