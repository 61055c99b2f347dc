"""A session and its totals, as plain integers."""

from __future__ import annotations

from copy import copy

from billaged.aggregator.changes import Row
from billaged.aggregator.effects import FinalSummary
from billaged.model.quantity import MemoryTime
from billaged.model.records import COUNTERS

# Places in a session row of the ledger (changes.SESSION_COLUMNS).
VM_ID, ORDINAL, CUSTOMER, START, EXPLICIT, LAST, END, END_KIND = range(8)
AMOUNTS = slice(8, 8 + COUNTERS)
MIB, REST, MEASURED, GAP, SAMPLES, PEAK, NEWEST, STATE = range(8 + COUNTERS, 16 + COUNTERS)


class Session:
    __slots__ = (
        "counters",
        "customer_id",
        "end_kind",
        "end_ns",
        "explicit",
        "gap_ns",
        "last_ns",
        "memory_byte_nanos",
        "ordinal",
        "peak_bytes",
        "samples",
        "start_ns",
        "vm_id",
        "window_base",
    )

    def __init__(self, vm_id: str, ordinal: int, customer_id: str) -> None:
        self.vm_id = vm_id
        self.ordinal = ordinal
        self.customer_id = customer_id
        self.start_ns = 0
        self.explicit = False
        self.last_ns = 0
        # None while it runs.
        self.end_ns: int | None = None
        self.end_kind: str | None = None
        self.counters = [0] * COUNTERS
        self.memory_byte_nanos = 0
        self.gap_ns = 0
        self.samples = 0
        self.peak_bytes = 0
        # The totals when the running interval first touched the session, and in the
        # peak's place the highest memory sampled or held since.
        self.window_base = self.totals_without_peak()

    @classmethod
    def of_row(cls, row: Row) -> Session:
        session = cls(row[VM_ID], row[ORDINAL], row[CUSTOMER])
        session.start_ns, session.explicit, session.last_ns = row[START], bool(row[EXPLICIT]), row[LAST]
        session.end_ns, session.end_kind = row[END], row[END_KIND]
        session.counters = list(row[AMOUNTS])
        session.memory_byte_nanos = MemoryTime(row[MIB], row[REST]).byte_nanos
        session.gap_ns, session.samples, session.peak_bytes = row[GAP], row[SAMPLES], row[PEAK]
        session.window_base = session.totals_without_peak()
        return session

    def copy(self) -> Session:
        """The same, so far; what happens to one is not seen in the other."""
        twin = copy(self)
        twin.counters, twin.window_base = list(self.counters), list(self.window_base)
        return twin

    @property
    def accounted_ns(self) -> int:
        return self.last_ns if self.end_ns is None else self.end_ns

    def totals(self) -> list[int]:
        """So far, in the order of ``columns.TOTALS_WIDTH``."""
        memory = MemoryTime.of_byte_nanos(self.memory_byte_nanos)
        measured_ns = self.accounted_ns - self.start_ns - self.gap_ns
        return [*self.counters, *memory, measured_ns, self.gap_ns, self.samples, self.peak_bytes]

    def totals_without_peak(self) -> list[int]:
        return [*self.totals()[:-1], 0]

    def summarise(self, received_ns: int) -> FinalSummary:
        """The final summary of a session that has ended; its window begins again."""
        summary = FinalSummary(
            self.vm_id,
            self.customer_id,
            self.ordinal,
            self.start_ns,
            self.accounted_ns,
            received_ns,
            tuple(self.window_base),
            tuple(self.totals()),
        )
        self.window_base = self.totals_without_peak()
        return summary

    def row(self) -> Row:
        """For the ledger, as one that is not its VM's newest."""
        life = (self.start_ns, int(self.explicit), self.last_ns, self.end_ns, self.end_kind)
        return (self.vm_id, self.ordinal, self.customer_id, *life, *self.totals(), 0, b"")
