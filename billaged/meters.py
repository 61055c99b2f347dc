"""The meters: what the stages are given to count with. Part of the composition root."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from billaged.aggregator.changes import (
    ANOMALY_COLUMNS,
    CORRECTION_COLUMNS,
    DEAD_LETTER_COLUMNS,
    FACT_COLUMNS,
    LedgerChanges,
)
from billaged.aggregator.engine import FOLD_FAILED
from billaged.aggregator.entries import OVERFLOW, WRONG_OWNER
from billaged.doors.methods import METHODS, WATCH_METHOD
from billaged.settings import Metrics
from billaged.telemetry.metrics.histogram import FLUSH_SECONDS, FOLD_SECONDS, Histogram
from billaged.telemetry.metrics.journal import JournalMeter
from billaged.telemetry.metrics.labels import Key, LabelledCounts
from billaged.telemetry.metrics.requests import DoorMeter

DEAD_LETTER_REASONS: Final = (WRONG_OWNER, OVERFLOW, FOLD_FAILED)
ANOMALY_KINDS: Final = (
    "conflict", "contradicted_stop", "counter_reset", "extra_stop", "implausible", "late", "late_start", "late_stop",
    "missed_stop", "returned", "unknown_stop", "vanished",
)  # fmt: skip
# What the fold has counted of samples, and what it is called here.
_OUTCOMES: Final = {"backfilled": "backfilled", "duplicates": "duplicate", "conflicts": "conflict", "late": "late"}

_KIND: Final = ANOMALY_COLUMNS.index("kind")
_REASON: Final = DEAD_LETTER_COLUMNS.index("reason")


class Meters:
    """One for each stage that is to be counted, for the life of a daemon."""

    def __init__(self, settings: Metrics) -> None:
        unary = [method.name for method in METHODS]
        self.grpc = DoorMeter("grpc", unary, (WATCH_METHOD,))
        self.http = DoorMeter("http", unary, (WATCH_METHOD,))
        self.journal = JournalMeter()
        self.fold = FoldMeter(by_vm=settings.high_cardinality)


class FoldMeter:
    """Satisfies ``aggregator.worker.FoldObserver``. What it counts is in the ledger; any thread may read."""

    def __init__(self, *, by_vm: bool) -> None:
        self.folds = Histogram(FOLD_SECONDS)
        self.flushes = Histogram(FLUSH_SECONDS)
        # Samples of each VM and its customer, None where nobody wants to know.
        self.by_vm = LabelledCounts(2) if by_vm else None
        self._tallies: Counter[str] = Counter(dict.fromkeys(("samples", *_OUTCOMES), 0))
        self._anomalies: Counter[str] = Counter(dict.fromkeys(ANOMALY_KINDS, 0))
        self._dead_letters: Counter[str] = Counter(dict.fromkeys(DEAD_LETTER_REASONS, 0))

    def folded(self, entries: int, seconds: float) -> None:
        self.folds.observe(seconds)

    def flushed(self, changes: LedgerChanges, seconds: float) -> None:
        self.flushes.observe(seconds)
        self._tallies.update(changes.tallies)
        self._anomalies.update(row[_KIND] for row in changes.anomalies)
        self._dead_letters.update(row[_REASON] for row in changes.dead_letters)
        if self.by_vm is not None:
            self.by_vm.add(_samples_by_vm(changes).items())

    @property
    def samples(self) -> int:
        """Those that count into usage."""
        return self._tallies["samples"]

    @property
    def outcomes(self) -> Mapping[str, int]:
        """Samples by what became of them."""
        tallies = self._tallies.copy()
        outcomes = {outcome: tallies[name] for name, outcome in _OUTCOMES.items()}
        # A backfilled one is counted among the samples too.
        return {"accepted": tallies["samples"] - tallies["backfilled"]} | outcomes

    @property
    def anomalies(self) -> Mapping[str, int]:
        return self._anomalies.copy()

    @property
    def dead_letters(self) -> Mapping[str, int]:
        return self._dead_letters.copy()


def _samples_by_vm(changes: LedgerChanges) -> Counter[Key]:
    counts: Counter[Key] = Counter()
    for columns, rows in ((FACT_COLUMNS, _flat(changes.facts)), (CORRECTION_COLUMNS, iter(changes.corrections))):
        vm_id, customer_id, samples = map(columns.index, ("vm_id", "customer_id", "samples"))
        for row in rows:
            counts[row[vm_id], row[customer_id]] += row[samples]
    return counts


def _flat(lists: Sequence[Sequence[tuple[Any, ...]]]) -> Iterator[tuple[Any, ...]]:
    for rows in lists:
        yield from rows
