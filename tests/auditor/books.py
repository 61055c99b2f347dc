"""The books: where usage is written down, once decided. Facts, corrections, gaps, anomalies, counts."""

from __future__ import annotations

import json
from collections import Counter
from typing import NamedTuple

from auditor.buckets import BucketClock, parts_of, share
from auditor.events import Rules
from auditor.session import Gap, GapKey, Posting, Session, Span
from auditor.usage import Usage


class FactKey(NamedTuple):
    bucket_start_ns: int
    bucket_ns: int
    vm_id: str
    ordinal: int
    customer_id: str


class Anomaly(NamedTuple):
    sequence: int
    item: int
    kind: str
    vm_id: str
    ordinal: int
    at_ns: int
    detail: str


def canonical_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


class Books:
    def __init__(self) -> None:
        self.clock = BucketClock()
        self.facts: dict[FactKey, Usage] = {}
        self.corrections: dict[tuple[int, FactKey], Usage] = {}
        self.gaps: dict[GapKey, Gap] = {}
        self.anomalies: list[Anomaly] = []
        self.dead_letters: list[tuple[int, str, str]] = []
        self.tallies: Counter[str] = Counter()

    def post(self, sequence: int, session: Session, posting: Posting) -> None:
        """Add to a bucket's fact, or to this sequence's correction of it where the bucket is closed."""
        if not posting.usage:
            # Nothing to say about that bucket: no row comes to be for it.
            return
        key = FactKey(posting.bucket_start_ns, posting.bucket_ns, session.vm_id, session.ordinal, session.customer_id)
        if self.clock.is_closed(posting.bucket_start_ns, posting.bucket_ns):
            self.corrections[sequence, key] = self.corrections.get((sequence, key), Usage()) + posting.usage
        else:
            self.facts[key] = self.facts.get(key, Usage()) + posting.usage
        session.totals += posting.usage

    def bill_span(
        self,
        sequence: int,
        session: Session,
        rules: Rules,
        a: int,
        b: int,
        amounts: tuple[int, ...],
        memory_bytes: int | None,
        kind: str,
    ) -> Span:
        """Bill from a to b: measured over its buckets, or a gap (of this kind) where it is too long."""
        if b - a > rules.gap_threshold_ns:
            key = GapKey(session.vm_id, session.ordinal, a)
            self.open_gap(session, key, Gap(b, kind, session.customer_id, amounts, sequence))
            return Span(gap=key)
        span = Span()
        for part in parts_of(a, b, rules.bucket_ns):
            length_ns = part.to_ns - part.from_ns
            usage = Usage(
                counters=tuple(share(amount, a, b, part) for amount in amounts),
                # Before a session's first sample no memory is known, and none is billed.
                memory_byte_nanos=(memory_bytes or 0) * length_ns,
                measured_ns=length_ns,
            )
            span.postings.append(Posting(part.bucket_start_ns, rules.bucket_ns, usage))
            self.post(sequence, session, span.postings[-1])
        return span

    def open_gap(self, session: Session, key: GapKey, gap: Gap) -> None:
        """Write a gap down; its counters and its length are the session's.

        Raises:
            ValueError: a gap of this session starts there already.
        """
        if key in self.gaps:
            raise ValueError(f"two gaps at {key}")
        self.gaps[key] = gap
        session.totals += Usage(gap.counters)
        session.gap_ns += gap.end_ns - key.start_ns

    def take_back(self, sequence: int, session: Session, span: Span) -> None:
        """Undo exactly what a span was billed as, bucket by bucket."""
        for bucket_start_ns, bucket_ns, usage in span.postings:
            self.post(sequence, session, Posting(bucket_start_ns, bucket_ns, usage.taken_back()))
        if span.gap is not None:
            gap = self.gaps.pop(span.gap)
            session.totals += Usage(gap.counters).taken_back()
            session.gap_ns -= gap.end_ns - span.gap.start_ns

    def record(
        self, sequence: int, item: int, kind: str, vm_id: str, ordinal: int, at_ns: int, detail: dict[str, object]
    ) -> None:
        self.anomalies.append(Anomaly(sequence, item, kind, vm_id, ordinal, at_ns, canonical_json(detail)))

    def bury(self, sequence: int, kind: str, reason: str) -> None:
        """A record that cannot be placed."""
        self.dead_letters.append((sequence, kind, reason))
        self.tallies["dead_letters"] += 1
