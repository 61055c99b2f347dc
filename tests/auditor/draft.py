"""A draft: what one record would change in the books. Nothing of it is in them before it is known to fit."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from auditor.billed import Bucket, Difference, Gap, Record
from auditor.text import canonical_json
from auditor.usage import Usage


class Posting(NamedTuple):
    bucket: Bucket
    usage: Usage
    cause: str


class Found(NamedTuple):
    item: int
    record: Record


@dataclass
class Draft:
    sequence: int
    vm_id: str
    customer_id: str
    postings: list[Posting] = field(default_factory=list)
    # In order: True for a gap that came to be, False for one that is gone.
    gaps: list[tuple[Gap, bool]] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)
    tallies: Counter[str] = field(default_factory=Counter)
    # The time of the first point that was appended or put at the newest instant.
    spoken_ns: int | None = None

    def change(self, item: int, change: Difference, cause: str) -> None:
        self.postings += [Posting(bucket, usage, cause) for bucket, usage in change.usage.items()]
        self.gaps += [(gap, False) for gap in change.gaps_gone]
        self.gaps += [(gap, True) for gap in change.gaps_made]
        self.found += [Found(item, record) for record in change.records]

    def record(self, item: int, kind: str, ordinal: int, at_ns: int, detail: dict[str, object]) -> None:
        self.found.append(Found(item, Record(kind, ordinal, at_ns, canonical_json(detail))))

    def totals(self) -> dict[int, Usage]:
        """By which each session's totals would change."""
        totals: dict[int, Usage] = {}
        for bucket, usage, _ in self.postings:
            totals[bucket.ordinal] = totals.get(bucket.ordinal, Usage()) + usage
        for gap, made in self.gaps:
            usage = Usage(gap.counters) if made else -Usage(gap.counters)
            totals[gap.ordinal] = totals.get(gap.ordinal, Usage()) + usage
        return totals
