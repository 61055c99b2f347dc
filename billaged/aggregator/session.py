"""One VM at a time: the rules of the fold, exact, over plain integers.

Everything that is rare comes this way: a VM's first sample, starts and stops,
decreases, gaps, points that are late. What is common (the next sample of a running
VM) takes ``fold.py``'s way over columns; both give the same.
"""

from __future__ import annotations

from typing import NamedTuple

from billaged.aggregator.effects import (
    NO_AMOUNTS,
    Amounts,
    Anomaly,
    Effects,
    FactKey,
    FinalSummary,
    GapRow,
    Posting,
    SessionRow,
    canonical_json,
)
from billaged.model.quantity import MemoryTime
from billaged.model.records import COUNTER_FIELDS, COUNTERS, FoldRules
from billaged.model.time import NANOS

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


def fold_samples(vm: Vm, customer_id: str, samples: list[Sample], context: Context) -> bool:
    """Fold one batch, sorted by time. False where it belongs to another customer: a dead letter."""
    if vm.ordinal and vm.customer_id != customer_id:
        if vm.running or samples[0][0] < vm.end_ns:
            return False
        _open_implicit(vm, customer_id, samples[0], context)
        samples = samples[1:]
        first_item = 1
    else:
        first_item = 0
    for item, sample in enumerate(samples, first_item):
        _fold_sample(vm, customer_id, sample, item, context)
    return True


def _fold_sample(vm: Vm, customer_id: str, sample: Sample, item: int, context: Context) -> None:
    time_ns = sample[0]
    tallies = context.effects.tallies
    if not vm.ordinal:
        _open_implicit(vm, customer_id, sample, context)
    elif vm.samples and time_ns == vm.last_ns:
        if sample[1] == vm.memory_bytes and list(sample[2:]) == vm.last:
            tallies["duplicates"] += 1
        else:
            tallies["conflicts"] += 1
            _record(vm, context, "conflict", time_ns, {"values": list(sample[1:])}, item)
    elif vm.running and (time_ns > vm.last_ns or (not vm.samples and time_ns == vm.start_ns)):
        _step(vm, sample, item, context)
    elif not vm.running and time_ns > vm.end_ns:
        _record(vm, context, "contradicted_stop", time_ns, {"stop_ns": vm.end_ns}, item)
        _take_tail_back(vm, context)
        _step(vm, sample, item, context)
    else:
        tallies["late"] += 1
        _record(vm, context, "late", time_ns, {"values": list(sample[1:])}, item)


def fold_start(vm: Vm, customer_id: str, start_ns: int, context: Context) -> bool:
    """Fold a start notification. False where it belongs to another customer: a dead letter."""
    if not vm.ordinal:
        _open(vm, customer_id, start_ns, explicit=True)
    elif vm.customer_id != customer_id:
        if vm.running:
            return False
        if start_ns >= vm.end_ns:
            _supersede(vm, context)
            _open(vm, customer_id, start_ns, explicit=True)
        else:
            _record(vm, context, "late_start", start_ns, {"customer_id": customer_id})
    elif vm.explicit and start_ns == vm.start_ns:
        context.effects.tallies["duplicate_starts"] += 1
    elif not vm.explicit and vm.previous_end_ns <= start_ns <= vm.start_ns:
        _make_explicit(vm, start_ns, context)
    elif vm.running and start_ns > vm.last_ns:
        _record(vm, context, "missed_stop", start_ns, {"end_ns": vm.last_ns})
        vm.running, vm.end_ns = False, vm.last_ns
        _supersede(vm, context, "missed_stop")
        _open(vm, customer_id, start_ns, explicit=True)
    elif not vm.running and start_ns >= vm.end_ns:
        _supersede(vm, context)
        _open(vm, customer_id, start_ns, explicit=True)
    else:
        _record(vm, context, "late_start", start_ns, {"customer_id": customer_id})
    return True


def fold_stop(vm: Vm, stop_ns: int, context: Context) -> bool:
    """Fold a stop notification. True where the session ended, now or at another time than before."""
    if not vm.ordinal:
        _record(vm, context, "unknown_stop", stop_ns, {})
    elif stop_ns < vm.start_ns:
        _record(vm, context, "late_stop", stop_ns, {})
    elif stop_ns < vm.last_ns:
        _record(vm, context, "contradicted_stop", stop_ns, {"last_ns": vm.last_ns})
    elif vm.running:
        _end_with_tail(vm, stop_ns, context)
        return True
    elif stop_ns == vm.end_ns:
        context.effects.tallies["duplicate_stops"] += 1
    elif stop_ns > vm.end_ns:
        _record(vm, context, "extra_stop", stop_ns, {"end_ns": vm.end_ns})
    else:
        _record(vm, context, "earlier_stop", stop_ns, {"end_ns": vm.end_ns})
        _take_tail_back(vm, context)
        _end_with_tail(vm, stop_ns, context)
        return True
    return False


def _open(vm: Vm, customer_id: str, start_ns: int, *, explicit: bool) -> None:
    vm.ordinal += 1
    vm.customer_id = customer_id
    vm.start_ns = vm.last_ns = start_ns
    vm.explicit, vm.running, vm.end_ns = explicit, True, 0
    vm.origin = None
    vm.counters = [0] * COUNTERS
    vm.memory_byte_nanos = vm.gap_ns = vm.samples = vm.peak_bytes = 0
    vm.window_base = [0] * len(vm.window_base)


def _open_implicit(vm: Vm, customer_id: str, sample: Sample, context: Context) -> None:
    """An unknown VM's first sample, or another customer's: the baseline, which bills nothing."""
    previous_end_ns = vm.end_ns if vm.ordinal else 0
    if vm.ordinal:
        _supersede(vm, context)
    _open(vm, customer_id, sample[0], explicit=False)
    vm.previous_end_ns = previous_end_ns
    marks = list(vm.marks)
    vm.origin = _first_amounts(vm, sample)
    vm.marks = marks
    for index, value in enumerate(sample[2:]):
        if vm.sampled and value < vm.last[index]:
            vm.marks[index] = max(vm.marks[index], vm.last[index])
        elif vm.marks[index] <= value:
            vm.marks[index] = 0
    _accept(vm, sample, context)


def _supersede(vm: Vm, context: Context, end_kind: str = "stop") -> None:
    """The newest session becomes an older one: its row is written as it is, for good."""
    if vm.totals_without_peak() != vm.window_base:
        _summarise(vm, context)
    context.effects.superseded.append(vm.row(end_kind=end_kind, newest=False, state=b""))


def _accept(vm: Vm, sample: Sample, context: Context) -> None:
    """The sample becomes the newest one; it counts in the bucket of its own time."""
    time_ns, memory_bytes = sample[0], sample[1]
    vm.last_ns, vm.memory_bytes, vm.last, vm.sampled = time_ns, memory_bytes, list(sample[2:]), True
    vm.samples += 1
    vm.peak_bytes = max(vm.peak_bytes, memory_bytes)
    vm.window_base[-1] = max(vm.window_base[-1], memory_bytes)
    context.effects.tallies["samples"] += 1
    _post(vm, context, time_ns, context.rules.bucket_ns, Posting(vm.customer_id, NO_AMOUNTS, 0, 0, 1, memory_bytes))


def _step(vm: Vm, sample: Sample, item: int, context: Context) -> None:
    """From the newest sample (or an explicit start) to this one."""
    first = not vm.samples
    step_ns = sample[0] - vm.last_ns
    amounts = _first_amounts(vm, sample) if first and vm.explicit else _step_amounts(vm, sample, item, context)
    if not _plausible(amounts, step_ns, context.rules):
        _record(vm, context, "implausible", sample[0], {"amounts": list(amounts), "step_ns": step_ns}, item)
        amounts = NO_AMOUNTS
    memory_bytes = 0 if first else vm.memory_bytes
    _bill_span(vm, vm.last_ns, sample[0], amounts, memory_bytes, "start" if first else "step", context)
    _accept(vm, sample, context)


def _first_amounts(vm: Vm, sample: Sample) -> Amounts:
    """What each counter bills at the first sample after a start; moves the marks."""
    amounts = []
    for index, value in enumerate(sample[2:]):
        if not vm.sampled or value < vm.last[index]:
            # It counts from zero.
            amounts.append(value)
            vm.marks[index] = 0
        else:
            amounts.append(value - _base(vm, index, value))
    return tuple(amounts)  # type: ignore[return-value]


def _step_amounts(vm: Vm, sample: Sample, item: int, context: Context) -> Amounts:
    """What each counter bills from the last value to this one; moves the marks, records decreases."""
    amounts, decreased = [], {}
    for index, value in enumerate(sample[2:]):
        last = vm.last[index]
        if value < last:
            amounts.append(0)
            vm.marks[index] = max(vm.marks[index], last)
            decreased[COUNTER_FIELDS[index]] = [last, value]
        else:
            amounts.append(value - _base(vm, index, value))
    if decreased:
        _record(vm, context, "counter_reset", sample[0], {"counters": decreased}, item)
    return tuple(amounts)  # type: ignore[return-value]


def _base(vm: Vm, index: int, value: int) -> int:
    """What a value at or above the last one is counted from: the mark, once it is reached."""
    mark = vm.marks[index]
    if 0 < mark <= value:
        vm.marks[index] = 0
        return mark
    return vm.last[index]


def _plausible(amounts: Amounts, step_ns: int, rules: FoldRules) -> bool:
    allowed_ns = step_ns + NANOS
    if amounts[0] > rules.max_cores * allowed_ns:
        return False
    return max(amounts[1:]) <= rules.max_gigabytes_per_second * allowed_ns


def _make_explicit(vm: Vm, start_ns: int, context: Context) -> None:
    """The start of an implicit session came: the time before its first sample is the session's too."""
    first_ns = vm.start_ns
    amounts = vm.origin or NO_AMOUNTS
    vm.start_ns, vm.explicit, vm.origin = start_ns, True, None
    if not _plausible(amounts, first_ns - start_ns, context.rules):
        detail = {"amounts": list(amounts), "step_ns": first_ns - start_ns}
        _record(vm, context, "implausible", start_ns, detail)
        amounts = NO_AMOUNTS
    _bill_span(vm, start_ns, first_ns, amounts, 0, "start", context)


def _end_with_tail(vm: Vm, end_ns: int, context: Context) -> None:
    """End the session, bill up to its end, and sum it up."""
    rules = context.rules
    vm.running, vm.end_ns = False, end_ns
    vm.tail = Tail(rules.bucket_ns, end_ns - vm.last_ns > rules.gap_threshold_ns)
    if vm.tail.is_gap:
        _bill_gap(vm, vm.last_ns, end_ns, NO_AMOUNTS, "stop", context)
    else:
        _bill_measured(vm, vm.last_ns, end_ns, NO_AMOUNTS, _tail_memory(vm), rules.bucket_ns, context)
    _summarise(vm, context)


def _summarise(vm: Vm, context: Context) -> None:
    """The final summary of a session that has ended; its window begins again."""
    context.effects.finals.append(
        FinalSummary(
            vm.vm_id,
            vm.customer_id,
            vm.ordinal,
            vm.start_ns,
            vm.accounted_ns,
            context.received_ns,
            tuple(vm.window_base),
            tuple(vm.totals()),
        )
    )
    vm.window_base = vm.totals_without_peak()


def _take_tail_back(vm: Vm, context: Context) -> None:
    if vm.tail.is_gap:
        vm.gap_ns -= vm.end_ns - vm.last_ns
        context.effects.gaps[vm.vm_id, vm.ordinal, vm.last_ns] = None
    else:
        # Backwards in time: the same parts, negative.
        _bill_measured(vm, vm.last_ns, vm.end_ns, NO_AMOUNTS, _tail_memory(vm), vm.tail.bucket_ns, context, sign=-1)
    vm.running, vm.end_ns = True, 0


def _tail_memory(vm: Vm) -> int:
    return vm.memory_bytes if vm.samples else 0


def _bill_span(
    vm: Vm, start_ns: int, end_ns: int, amounts: Amounts, memory_bytes: int, kind: str, context: Context
) -> None:
    """Bill a span as measured, or as a gap where it is longer than the threshold."""
    for index in range(COUNTERS):
        vm.counters[index] += amounts[index]
    if end_ns - start_ns > context.rules.gap_threshold_ns:
        _bill_gap(vm, start_ns, end_ns, amounts, kind, context)
    else:
        _bill_measured(vm, start_ns, end_ns, amounts, memory_bytes, context.rules.bucket_ns, context)


def _bill_gap(vm: Vm, start_ns: int, end_ns: int, amounts: Amounts, kind: str, context: Context) -> None:
    vm.gap_ns += end_ns - start_ns
    row = GapRow(vm.vm_id, vm.ordinal, start_ns, end_ns, kind, vm.customer_id, amounts, context.sequence)
    context.effects.gaps[vm.vm_id, vm.ordinal, start_ns] = row


def _bill_measured(
    vm: Vm,
    start_ns: int,
    end_ns: int,
    amounts: Amounts,
    memory_bytes: int,
    bucket_ns: int,
    context: Context,
    sign: int = 1,
) -> None:
    """Spread a measured span over the buckets it spans; sign -1 takes it back (it then has no amounts)."""
    span_ns = end_ns - start_ns
    vm.memory_byte_nanos += sign * memory_bytes * span_ns
    if not span_ns:
        if any(amounts):
            _post(vm, context, end_ns, bucket_ns, Posting(vm.customer_id, amounts, 0, 0, 0, 0))
        return
    before = NO_AMOUNTS
    edge = start_ns
    while edge < end_ns:
        next_edge = min(edge - edge % bucket_ns + bucket_ns, end_ns)
        passed_ns, part_ns = next_edge - start_ns, sign * (next_edge - edge)
        until: Amounts = tuple(amount * passed_ns // span_ns for amount in amounts)  # type: ignore[assignment]
        part: Amounts = tuple(map(int.__sub__, until, before))  # type: ignore[assignment]
        _post(vm, context, edge, bucket_ns, Posting(vm.customer_id, part, memory_bytes * part_ns, part_ns, 0, 0))
        edge, before = next_edge, until


def _post(vm: Vm, context: Context, at_ns: int, bucket_ns: int, posting: Posting) -> None:
    """Post to the bucket that holds ``at_ns``."""
    key = FactKey(at_ns - at_ns % bucket_ns, bucket_ns, vm.vm_id, vm.ordinal)
    context.effects.post(context.sequence, key, posting, context.closed_through_ns)


def _record(vm: Vm, context: Context, kind: str, at_ns: int, detail: dict[str, object], item: int = 0) -> None:
    context.effects.anomalies.append(
        Anomaly(context.sequence, item, kind, vm.vm_id, vm.ordinal, at_ns, canonical_json(detail))
    )
