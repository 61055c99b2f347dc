"""Where a walk along a timeline stands: a session, how it goes on, and the meters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from auditor.events import COUNTER_NAMES, Rules, Sample
from auditor.meter import Meter


class Life(NamedTuple):
    """What a session is, beside what it used."""

    start_ns: int
    explicit: bool
    last_ns: int
    end_ns: int | None = None
    end_kind: str | None = None


class Span(NamedTuple):
    """A span of time that was billed or is to be."""

    from_ns: int
    to_ns: int
    # None where no sample was before it.
    memory_bytes: int | None
    rules: Rules


@dataclass(frozen=True)
class State:
    """``life`` is None in phase none; without an end the session is running, with one it is ended."""

    meters: tuple[Meter, ...] = (Meter(),) * len(COUNTER_NAMES)
    ordinal: int = 0
    life: Life | None = None
    # The session's.
    newest: Sample | None = None
    # What was billed for a stop.
    tail: Span | None = None

    @property
    def running(self) -> bool:
        return self.life is not None and self.life.end_ns is None

    @property
    def bearing(self) -> tuple[object, ...]:
        """What of it no point may change where a closed link begins: all but the marks and the session's start."""
        phase = None if self.life is None else (self.life.last_ns, self.life.end_ns)
        return (self.ordinal, phase, self.newest, tuple(meter.last for meter in self.meters))
