"""What a walk over one instant bills."""

from __future__ import annotations

from typing import Final, NamedTuple

from billaged.aggregator.effects import NO_AMOUNTS, Amounts
from billaged.model.records import COUNTERS, FoldRules

# What a step was, so that its link is open for good.
CLOSED_STEP_GAP: Final = 1
CONTRADICTED: Final = 2
PASSED: Final = 4  # a mark
OUT_OF_LINE: Final = 8  # a gap, a decrease, or more than is plausible

# Places in a posting, after the counters.
MEMORY, MEASURED, SAMPLES, PEAK = range(COUNTERS, COUNTERS + 4)

# ordinal, bucket_start_ns, bucket_ns
BucketKey = tuple[int, int, int]
# ordinal, start_ns
GapKey = tuple[int, int]


class Gap(NamedTuple):
    end_ns: int
    kind: str
    amounts: Amounts


class Found(NamedTuple):
    """Something to put on record."""

    kind: str
    at_ns: int
    ordinal: int
    detail: dict[str, object]


class Opened(NamedTuple):
    ordinal: int
    start_ns: int
    explicit: bool


class Left(NamedTuple):
    """A session after which another one opened."""

    ordinal: int
    last_ns: int
    end_ns: int
    end_kind: str


class Billed:
    """Collected over an instant's points."""

    __slots__ = ("counted", "found", "gaps", "held", "left", "notable", "opened", "postings")

    def __init__(self) -> None:
        # The counters, memory x time, measured ns, samples; what is taken back is negative.
        self.postings: dict[BucketKey, list[int]] = {}
        # In order; None takes one away.
        self.gaps: list[tuple[GapKey, Gap | None]] = []
        # Where the sample counts, its time and its memory.
        self.counted: tuple[BucketKey, int, int] | None = None
        # The session and memory of a measured step.
        self.held: tuple[int, int] | None = None
        self.found: list[Found] = []
        self.opened: list[Opened] = []
        self.left: list[Left] = []
        self.notable = 0

    def span(
        self, ordinal: int, start_ns: int, end_ns: int, amounts: Amounts, memory_bytes: int, kind: str, rules: FoldRules
    ) -> None:
        """Bill a span as measured, or as a gap where it is longer than the threshold."""
        if end_ns - start_ns > rules.gap_threshold_ns:
            self.gaps.append(((ordinal, start_ns), Gap(end_ns, kind, amounts)))
            self.notable |= OUT_OF_LINE | CLOSED_STEP_GAP * (kind == "step")
            return
        self._measured(ordinal, start_ns, end_ns, amounts, memory_bytes, rules.bucket_ns)
        if end_ns > start_ns:
            self.held = (ordinal, memory_bytes)

    def take_tail_back(self, ordinal: int, start_ns: int, end_ns: int, memory_bytes: int, rules: FoldRules) -> None:
        """Undo what a stop's tail was billed as."""
        if end_ns - start_ns > rules.gap_threshold_ns:
            self.gaps.append(((ordinal, start_ns), None))
        else:
            self._measured(ordinal, start_ns, end_ns, NO_AMOUNTS, memory_bytes, rules.bucket_ns, sign=-1)

    def count(self, ordinal: int, time_ns: int, memory_bytes: int, bucket_ns: int) -> None:
        key = (ordinal, time_ns - time_ns % bucket_ns, bucket_ns)
        self._posting(key)[SAMPLES] += 1
        self.counted = (key, time_ns, memory_bytes)

    def _posting(self, key: BucketKey) -> list[int]:
        posting = self.postings.get(key)
        if posting is None:
            posting = self.postings[key] = [0] * PEAK
        return posting

    def _measured(
        self,
        ordinal: int,
        start_ns: int,
        end_ns: int,
        amounts: Amounts,
        memory_bytes: int,
        bucket_ns: int,
        sign: int = 1,
    ) -> None:
        """Spread a span over the buckets it spans."""
        span_ns = end_ns - start_ns
        if not span_ns:
            if any(amounts):
                posting = self._posting((ordinal, end_ns - end_ns % bucket_ns, bucket_ns))
                for index in range(COUNTERS):
                    posting[index] += amounts[index]
            return
        edge, before = start_ns, NO_AMOUNTS
        while edge < end_ns:
            bucket_start_ns = edge - edge % bucket_ns
            next_edge = min(bucket_start_ns + bucket_ns, end_ns)
            passed_ns, part_ns = next_edge - start_ns, sign * (next_edge - edge)
            posting = self._posting((ordinal, bucket_start_ns, bucket_ns))
            if amounts is not NO_AMOUNTS:
                until: Amounts = tuple([amount * passed_ns // span_ns for amount in amounts])  # type: ignore[assignment]
                for index in range(COUNTERS):
                    posting[index] += until[index] - before[index]
                before = until
            posting[MEMORY] += memory_bytes * part_ns
            posting[MEASURED] += part_ns
            edge = next_edge
