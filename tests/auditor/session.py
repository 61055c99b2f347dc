"""A session: one life of one VM, as far as it is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from auditor.events import Sample
from auditor.usage import NOTHING, Usage


class Posting(NamedTuple):
    """Usage that went to one bucket."""

    bucket_start_ns: int
    bucket_ns: int
    usage: Usage


class GapKey(NamedTuple):
    vm_id: str
    ordinal: int
    start_ns: int


class Gap(NamedTuple):
    end_ns: int
    kind: str
    customer_id: str
    counters: tuple[int, ...]
    sequence: int


@dataclass
class Span:
    """What one span was billed as, so that a tail can be taken back exactly."""

    postings: list[Posting] = field(default_factory=list)
    gap: GapKey | None = None


@dataclass
class Session:
    vm_id: str
    ordinal: int
    customer_id: str
    start_ns: int
    explicit: bool
    newest: Sample | None = None
    end_ns: int | None = None
    end_kind: str | None = None
    totals: Usage = field(default_factory=Usage)
    gap_ns: int = 0
    # From the last sample to a stop; None while running.
    tail: Span | None = None
    # What the five counters would have billed at the baseline, had an explicit start been before it.
    baseline_amounts: tuple[int, ...] = NOTHING

    @property
    def running(self) -> bool:
        return self.end_ns is None

    @property
    def last_ns(self) -> int:
        return self.start_ns if self.newest is None else self.newest.time_ns
