"""What the summaries' windows add up to, session by session."""

from __future__ import annotations

from collections import defaultdict
from operator import add, attrgetter

from auditor.events import COUNTER_NAMES
from auditor.invariants import Named
from auditor.usage import MEMORY_UNIT_BYTE_NANOS

from billaged.aggregator.summary import SummaryBatch

# All of a usage but the peak, which does not add up.
_amounts = attrgetter(*COUNTER_NAMES, "memory_byte_nanos", "measured_ns", "gap_ns", "samples")
_NOTHING = (0,) * (len(COUNTER_NAMES) + 4)


class SummedWindows:
    """A ``SummarySink``. What a crash undoes is given out again, so a window counts when the ledger has it."""

    def __init__(self) -> None:
        # By VM and ordinal.
        self._sums: defaultdict[tuple[str, int], tuple[int, ...]] = defaultdict(lambda: _NOTHING)
        self._new: list[SummaryBatch] = []
        self.published = 0

    def publish(self, batch: SummaryBatch) -> None:
        self._new.append(batch)
        self.published += len(batch)

    def keep(self) -> None:
        """The ledger has what was published so far."""
        for batch in self._new:
            for summary in batch.rows():
                key = (summary.vm_id, summary.ordinal)
                self._sums[key] = tuple(map(add, self._sums[key], _amounts(summary.window)))
        self._new.clear()

    def forget(self) -> None:
        """What the ledger does not have never was."""
        self._new.clear()

    def complaints(self, sessions: list[Named]) -> list[str]:
        """Sessions whose windows add up to something else than was billed; after the last interval was closed."""
        found = []
        sums = dict(self._sums)
        for row in sessions:
            memory = row["memory_mib_seconds"] * MEMORY_UNIT_BYTE_NANOS + row["memory_rest_byte_nanos"]
            billed = (*(row[name] for name in COUNTER_NAMES), memory, row["measured_ns"], row["gap_ns"], row["samples"])
            summed = sums.pop((row["vm_id"], row["ordinal"]), _NOTHING)
            if summed != billed:
                found.append(f"windows of {row['vm_id']} {row['ordinal']} add up to {summed}, billed is {billed}")
        return found + [f"windows of a session that is none: {key} {sums[key]}" for key in sums if any(sums[key])]
