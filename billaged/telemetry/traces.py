"""Traces: one for each request while it is answered, and which of them are kept.

Names and numbers of W3C Trace Context. This knows no library: where OpenTelemetry is off,
nothing of it is loaded, and ``current`` is all that the log looks at.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Final, NamedTuple

# The request that is being answered here, for the lines that are logged meanwhile.
current: Final[ContextVar[Trace | None]] = ContextVar("billaged_trace", default=None)

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 1
_LOW_BITS: Final = 2**64 - 1

# Seeded by the system, and nobody else's: who seeds the common one would make ids come again.
_ids: Final = random.Random()


class Parent(NamedTuple):
    """The caller's span."""

    trace_id: int
    span_id: int
    sampled: bool


class Served(NamedTuple):
    """A method of a door: what all its spans have in common."""

    name: str
    attributes: Mapping[str, str]
    # The attribute that has the status: gRPC's number, Connect's word.
    status_attribute: str


class Trace:
    """One request. Times are ``time.monotonic_ns``, 0 for what has not been.

    Made and ended by the loop's thread; who has it afterwards reads only.
    """

    __slots__ = (
        "_on_end", "began_ns", "began_wall_ns", "caller", "code", "durable_ns", "ended_ns", "handed_over_ns", "method",
        "parent_id", "sampled", "span_id", "trace_id",
    )  # fmt: skip

    def __init__(self, method: Served, parent: Parent | None, bound: int, on_end: Callable[[Trace], None]) -> None:
        """``bound``: of the traces that begin here the ones with lower 64 bits under this are kept."""
        self.method = method
        if parent is None:
            self.trace_id, self.parent_id = _ids.getrandbits(128) or 1, 0
            self.sampled = self.trace_id & _LOW_BITS < bound
        else:
            self.trace_id, self.parent_id, self.sampled = parent
        self.span_id = _ids.getrandbits(64) or 1
        self.caller = ""
        self.code = ""
        self._on_end = on_end
        self.handed_over_ns = self.durable_ns = self.ended_ns = 0
        # The wall clock may be set meanwhile: it is asked once, and the other one tells what passes.
        self.began_wall_ns = time.time_ns() if self.sampled else 0
        self.began_ns = time.monotonic_ns() if self.sampled else 0

    def end(self, code: str) -> None:
        """It is answered, with gRPC's name of a status."""
        current.set(None)
        if self.sampled:
            self.code = code
            self.ended_ns = time.monotonic_ns()
            self._on_end(self)

    def wall_ns(self, monotonic_ns: int) -> int:
        """Unix time of a moment of this trace."""
        return self.began_wall_ns + monotonic_ns - self.began_ns


def rate_bound(rate: float) -> int:
    """What the lower 64 bits of a trace id are compared with, as OpenTelemetry's TraceIdRatioBased does it.

    So services of the same rate keep the same traces.
    """
    return round(rate * (_LOW_BITS + 1))


def parent_of(text: str) -> Parent | None:
    """The span that a ``traceparent`` names; None where it is none."""
    match = _TRACEPARENT.fullmatch(text)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more):
        return None
    parent = Parent(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & _SAMPLED))
    return parent if parent.trace_id and parent.span_id else None
