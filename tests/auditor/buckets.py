"""Buckets: what part of a step falls into which, and which of them are closed."""

from __future__ import annotations

from typing import NamedTuple

from auditor.events import MINUTE_NS, Tick

CLOSES_AFTER_NS = 10 * MINUTE_NS


class Part(NamedTuple):
    """The part of a step that lies in one bucket."""

    bucket_start_ns: int
    from_ns: int
    to_ns: int


def bucket_of(time_ns: int, bucket_ns: int) -> int:
    """The start of the bucket that holds a time."""
    return time_ns // bucket_ns * bucket_ns


def parts_of(a: int, b: int, bucket_ns: int) -> list[Part]:
    """The step from a to b, bucket by bucket. A step of no length is one part, in b's bucket."""
    if a == b:
        return [Part(bucket_of(b, bucket_ns), b, b)]
    parts = []
    at = a
    while at < b:
        start = bucket_of(at, bucket_ns)
        to = min(start + bucket_ns, b)
        parts.append(Part(start, at, to))
        at = to
    return parts


def share(amount: int, a: int, b: int, part: Part) -> int:
    """The part's share of an amount: cum at its later edge less cum at its earlier one."""
    if a == b:
        return amount
    return amount * (part.to_ns - a) // (b - a) - amount * (part.from_ns - a) // (b - a)


class BucketClock:
    """Which buckets are closed. Counts ticks, never reads a clock."""

    def __init__(self) -> None:
        # What is taken for the time: a tick's, but no later than ticks and samples make it.
        self.now_ns: int | None = None
        # The latest that it has ever been, as far as a sample was as new.
        self.latest_ns: int | None = None
        self.newest_sample_ns: int | None = None
        # Edges that a tick saw ended and that are not closed yet, and the ticks' length since then.
        self.waited_ns: dict[int, int] = {}
        # Buckets that end at or before it are closed.
        self.closed_until_ns: int | None = None

    def sampled(self, time_ns: int) -> None:
        if self.newest_sample_ns is None or time_ns > self.newest_sample_ns:
            self.newest_sample_ns = time_ns

    def tick(self, tick: Tick, bucket_ns: int) -> None:
        self.now_ns = self._believed(tick)
        if self.newest_sample_ns is not None:
            shown_ns = min(self.now_ns, self.newest_sample_ns)
            self.latest_ns = shown_ns if self.latest_ns is None else max(self.latest_ns, shown_ns)
        for edge in list(self.waited_ns):
            if edge > self.now_ns:
                del self.waited_ns[edge]
                continue
            self.waited_ns[edge] += tick.length_ns
            if self.waited_ns[edge] >= CLOSES_AFTER_NS:
                del self.waited_ns[edge]
                self.closed_until_ns = edge if self.closed_until_ns is None else max(self.closed_until_ns, edge)
        ended = bucket_of(self.now_ns, bucket_ns)
        if all(ended > edge for edge in (*self.waited_ns, self.closed_until_ns) if edge is not None):
            self.waited_ns[ended] = 0

    def _believed(self, tick: Tick) -> int:
        if self.now_ns is None:
            return tick.time_ns
        possible_ns = self.now_ns + tick.length_ns
        if self.newest_sample_ns is not None:
            possible_ns = max(possible_ns, self.newest_sample_ns)
        return min(tick.time_ns, possible_ns)

    def is_closed(self, bucket_start_ns: int, bucket_ns: int) -> bool:
        return self.closed_until_ns is not None and bucket_start_ns + bucket_ns <= self.closed_until_ns
