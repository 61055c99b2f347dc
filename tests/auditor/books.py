"""The books: where usage is written down, once decided. Facts, corrections, gaps, anomalies, counts."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from auditor.buckets import BucketClock
from auditor.draft import Draft
from auditor.usage import Usage

TOTAL_MAX = 2**63 - 1


class FactKey(NamedTuple):
    bucket_start_ns: int
    bucket_ns: int
    vm_id: str
    ordinal: int
    customer_id: str


class GapKey(NamedTuple):
    vm_id: str
    ordinal: int
    start_ns: int


class BookedGap(NamedTuple):
    end_ns: int
    kind: str
    customer_id: str
    counters: tuple[int, ...]
    sequence: int


class Anomaly(NamedTuple):
    sequence: int
    item: int
    kind: str
    vm_id: str
    at_ns: int
    ordinal: int
    detail: str


SessionKey = tuple[str, int]


class Books:
    def __init__(self) -> None:
        self.clock = BucketClock()
        self.facts: dict[FactKey, Usage] = {}
        self.corrections: dict[tuple[int, FactKey], Usage] = {}
        # Why each correction is there.
        self.causes: dict[tuple[int, FactKey], set[str]] = {}
        self.gaps: dict[GapKey, BookedGap] = {}
        self.totals: dict[SessionKey, Usage] = {}
        self.gap_ns: Counter[SessionKey] = Counter()
        self.anomalies: list[Anomaly] = []
        self.dead_letters: list[tuple[int, str, str]] = []
        self.tallies: Counter[str] = Counter()

    def fits(self, draft: Draft) -> bool:
        """Whether no counter of a session would grow too large for its column."""
        return all(
            max((self.totals.get((draft.vm_id, ordinal), Usage()) + usage).counters) <= TOTAL_MAX
            for ordinal, usage in draft.totals().items()
        )

    def enter(self, draft: Draft) -> None:
        for (ordinal, start_ns, length_ns), usage, cause in draft.postings:
            self._post(
                draft.sequence, FactKey(start_ns, length_ns, draft.vm_id, ordinal, draft.customer_id), usage, cause
            )
        for gap, made in draft.gaps:
            key, length_ns = GapKey(draft.vm_id, gap.ordinal, gap.start_ns), gap.end_ns - gap.start_ns
            if made:
                if key in self.gaps:
                    raise ValueError(f"two gaps at {key}")
                self.gaps[key] = BookedGap(gap.end_ns, gap.kind, draft.customer_id, gap.counters, draft.sequence)
            else:
                del self.gaps[key]
            self.gap_ns[key[:2]] += length_ns if made else -length_ns
        for ordinal, usage in draft.totals().items():
            session = (draft.vm_id, ordinal)
            self.totals[session] = self.totals.get(session, Usage()) + usage
        self.anomalies += [
            Anomaly(draft.sequence, item, record.kind, draft.vm_id, record.at_ns, record.ordinal, record.detail)
            for item, record in draft.found
        ]
        self.tallies.update(draft.tallies)

    def bury(self, sequence: int, kind: str, reason: str) -> None:
        """A record that cannot be placed."""
        self.dead_letters.append((sequence, kind, reason))
        self.tallies["dead_letters"] += 1

    def _post(self, sequence: int, key: FactKey, usage: Usage, cause: str) -> None:
        """Add to a bucket's fact, or to this sequence's correction of it where the bucket is closed."""
        if self.clock.is_closed(key.bucket_start_ns, key.bucket_ns):
            self.corrections[sequence, key] = self.corrections.get((sequence, key), Usage()) + usage
            self.causes.setdefault((sequence, key), set()).add(cause)
        else:
            self.facts[key] = self.facts.get(key, Usage()) + usage
