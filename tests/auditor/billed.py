"""What walking over one instant bills, and the difference between two ways of walking."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from auditor.buckets import bucket_of, parts_of, share
from auditor.events import Rules, Sample
from auditor.state import Life, Span
from auditor.usage import NOTHING, Usage

Amounts = tuple[int, ...]


class Bucket(NamedTuple):
    ordinal: int
    start_ns: int
    length_ns: int


class Gap(NamedTuple):
    ordinal: int
    start_ns: int
    end_ns: int
    kind: str
    counters: Amounts


class Record(NamedTuple):
    """An anomaly that a walk finds. The detail is canonical JSON."""

    kind: str
    ordinal: int
    at_ns: int
    detail: str

    @property
    def identity(self) -> tuple[str, int]:
        """By which it is told that a walk recorded it before."""
        return (self.kind, self.at_ns)


@dataclass
class Billed:
    usage: defaultdict[Bucket, Usage] = field(default_factory=lambda: defaultdict(Usage))
    # The samples that count, each with its bucket.
    counted: set[tuple[Bucket, Sample]] = field(default_factory=set)
    # 1 for a gap that came to be, -1 for one that was taken back.
    gaps: Counter[Gap] = field(default_factory=Counter)
    records: list[Record] = field(default_factory=list)
    # How each session that was touched stands after it.
    lives: dict[int, Life] = field(default_factory=dict)
    # What the step was, for its link: "gap", "step gap", "decrease", "passed", "implausible", "contradicted".
    notable: set[str] = field(default_factory=set)

    def same_bill(self, other: Billed) -> bool:
        return not any(difference([self], [other])[:-1])

    def span(self, ordinal: int, span: Span, amounts: Amounts, kind: str) -> None:
        """Bill over a span: measured over its buckets, or a gap (of this kind) where it is too long."""
        if span.to_ns - span.from_ns > span.rules.gap_threshold_ns:
            self.gaps[Gap(ordinal, span.from_ns, span.to_ns, kind, amounts)] += 1
            self.notable |= {"gap", f"{kind} gap"}
            return
        for bucket, usage in _measured(ordinal, span, amounts):
            self.usage[bucket] += usage

    def take_back(self, ordinal: int, tail: Span) -> None:
        """Undo exactly what a stop's tail was billed as."""
        if tail.to_ns - tail.from_ns > tail.rules.gap_threshold_ns:
            self.gaps[Gap(ordinal, tail.from_ns, tail.to_ns, "stop", NOTHING)] -= 1
            return
        for bucket, usage in _measured(ordinal, tail, NOTHING):
            self.usage[bucket] += -usage

    def count(self, ordinal: int, sample: Sample, rules: Rules) -> None:
        bucket = Bucket(ordinal, bucket_of(sample.time_ns, rules.bucket_ns), rules.bucket_ns)
        self.usage[bucket] += Usage(samples=1)
        self.counted.add((bucket, sample))


def _measured(ordinal: int, span: Span, amounts: Amounts) -> Iterable[tuple[Bucket, Usage]]:
    for part in parts_of(span.from_ns, span.to_ns, span.rules.bucket_ns):
        length_ns = part.to_ns - part.from_ns
        usage = Usage(
            counters=tuple(share(amount, span.from_ns, span.to_ns, part) for amount in amounts),
            # Before a session's first sample no memory is known, and none is billed.
            memory_byte_nanos=(span.memory_bytes or 0) * length_ns,
            measured_ns=length_ns,
        )
        yield Bucket(ordinal, part.bucket_start_ns, span.rules.bucket_ns), usage


class Difference(NamedTuple):
    """What is billed now and was not before."""

    usage: dict[Bucket, Usage]
    gaps_gone: list[Gap]
    gaps_made: list[Gap]
    records: list[Record]


def difference(before: Iterable[Billed], now: Iterable[Billed]) -> Difference:
    """Of two walks over the same stretch of a timeline."""
    old, new = list(before), list(now)
    usage: defaultdict[Bucket, Usage] = defaultdict(Usage)
    for billed in new:
        for bucket, amount in billed.usage.items():
            usage[bucket] += amount
    for billed in old:
        for bucket, amount in billed.usage.items():
            usage[bucket] += -amount
    counted = {each for billed in new for each in billed.counted} - {each for billed in old for each in billed.counted}
    for bucket, sample in counted:
        usage[bucket] += Usage(memory_peak_bytes=sample.memory_bytes)
    gaps: Counter[Gap] = Counter()
    for billed in new:
        gaps.update(billed.gaps)
    for billed in old:
        gaps.subtract(billed.gaps)
    known = {record.identity for billed in old for record in billed.records}
    return Difference(
        {bucket: amount for bucket, amount in usage.items() if amount},
        sorted(gap for gap, count in gaps.items() if count < 0),
        sorted(gap for gap, count in gaps.items() if count > 0),
        [record for billed in new for record in billed.records if record.identity not in known],
    )
