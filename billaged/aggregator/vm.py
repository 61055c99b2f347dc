"""A VM's newest session, as plain integers, and what a record is folded under."""

from __future__ import annotations

from copy import copy
from typing import NamedTuple

from billaged.aggregator.effects import Amounts, Anomaly, Effects, SessionRow, canonical_json
from billaged.model.quantity import MemoryTime
from billaged.model.records import COUNTERS, FoldRules

# A sample as the journal has it: time, memory, then the five counters.
Sample = tuple[int, ...]


class Context(NamedTuple):
    """What a record is folded under."""

    sequence: int
    received_ns: int
    rules: FoldRules
    # Buckets that end at or before this are closed.
    closed_through_ns: int
    effects: Effects


class Tail(NamedTuple):
    """How the span from the newest sample to a stop was billed: rules may change before it is taken back."""

    bucket_ns: int
    is_gap: bool


class Vm:
    """A VM's newest session, out of the columns and back into them."""

    __slots__ = (
        "counters",
        "customer_id",
        "end_ns",
        "explicit",
        "gap_ns",
        "last",
        "last_ns",
        "marks",
        "memory_byte_nanos",
        "memory_bytes",
        "ordinal",
        "origin",
        "peak_bytes",
        "previous_end_ns",
        "running",
        "sampled",
        "sampled_at_start",
        "samples",
        "start_ns",
        "tail",
        "vm_id",
        "window_base",
    )

    def __init__(self, vm_id: str) -> None:
        self.vm_id = vm_id
        # 0: the VM has no session yet.
        self.ordinal = 0
        self.customer_id = ""
        self.start_ns = 0
        self.explicit = False
        self.running = False
        self.end_ns = 0
        self.last_ns = 0
        self.memory_bytes = 0
        # Whether `last` holds a sample's counters, of this session or an earlier one.
        self.sampled = False
        # Whether that sample, of an earlier session, was taken at the very instant this one starts.
        self.sampled_at_start = False
        self.last = [0] * COUNTERS
        self.marks = [0] * COUNTERS
        # Of an implicit session: what its first sample would have billed after a start.
        self.origin: Amounts | None = None
        # And the end of the session before it, 0 for none: its start cannot lie before that.
        self.previous_end_ns = 0
        # How an ended session's tail was billed, so that exactly that can be taken back.
        self.tail = Tail(0, False)
        self.counters = [0] * COUNTERS
        self.memory_byte_nanos = 0
        self.gap_ns = 0
        self.samples = 0
        self.peak_bytes = 0
        # The totals when the running interval first touched the session, and in the
        # peak's place the highest memory sampled since.
        self.window_base = self.totals_without_peak()

    def copy(self) -> Vm:
        """The same, so far; what happens to one is not seen in the other."""
        twin = copy(self)
        twin.last, twin.marks = list(self.last), list(self.marks)
        twin.counters, twin.window_base = list(self.counters), list(self.window_base)
        return twin

    @property
    def accounted_ns(self) -> int:
        return self.last_ns if self.running else self.end_ns

    @property
    def measured_ns(self) -> int:
        return self.accounted_ns - self.start_ns - self.gap_ns

    def totals(self) -> list[int]:
        """The session's totals so far, in the order of ``columns.TOTALS_WIDTH``."""
        memory = MemoryTime.of_byte_nanos(self.memory_byte_nanos)
        return [*self.counters, *memory, self.measured_ns, self.gap_ns, self.samples, self.peak_bytes]

    def totals_without_peak(self) -> list[int]:
        return [*self.totals()[:-1], 0]

    def row(self, *, end_kind: str | None, newest: bool, state: bytes) -> SessionRow:
        return SessionRow(
            self.vm_id,
            self.ordinal,
            self.customer_id,
            self.start_ns,
            int(self.explicit),
            self.last_ns,
            None if self.running else self.end_ns,
            end_kind,
            tuple(self.counters),  # type: ignore[arg-type]
            self.memory_byte_nanos,
            self.measured_ns,
            self.gap_ns,
            self.samples,
            self.peak_bytes,
            int(newest),
            state,
        )


def record(vm: Vm, context: Context, kind: str, at_ns: int, detail: dict[str, object], item: int = 0) -> None:
    context.effects.anomalies.append(
        Anomaly(context.sequence, item, kind, vm.vm_id, vm.ordinal, at_ns, canonical_json(detail))
    )
