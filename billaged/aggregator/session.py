"""One VM at a time: the rules of the fold, exact, over plain integers.

Everything that is rare comes this way: a VM's first sample, starts and stops,
decreases, gaps, points that are late. What is common (the next sample of a running
VM) takes ``fold.py``'s way over columns; both give the same.
"""

from __future__ import annotations

from billaged.aggregator.effects import NO_AMOUNTS, FinalSummary, Posting
from billaged.aggregator.spans import bill_gap, bill_measured, bill_span, post
from billaged.aggregator.steps import first_amounts, plausible, step_amounts
from billaged.aggregator.vm import Context, Sample, Tail, Vm, record
from billaged.model.records import COUNTERS


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
    elif _is_newest(vm, sample):
        tallies["duplicates"] += 1
    elif vm.samples and time_ns == vm.last_ns:
        tallies["conflicts"] += 1
        record(vm, context, "conflict", time_ns, {"values": list(sample[1:])}, item)
    elif vm.running and (time_ns > vm.last_ns or (not vm.samples and time_ns == vm.start_ns)):
        _step(vm, sample, item, context)
    elif not vm.running and time_ns > vm.end_ns:
        record(vm, context, "contradicted_stop", time_ns, {"stop_ns": vm.end_ns}, item)
        _take_tail_back(vm, context)
        _step(vm, sample, item, context)
    else:
        tallies["late"] += 1
        record(vm, context, "late", time_ns, {"values": list(sample[1:])}, item)


def _is_newest(vm: Vm, sample: Sample) -> bool:
    """Whether it is the VM's newest sample again, also where a session has begun at that instant since."""
    # A session without samples has its start in the place of its newest sample's time.
    if sample[0] != vm.last_ns or not (vm.samples or vm.sampled_at_start):
        return False
    return sample[1] == vm.memory_bytes and list(sample[2:]) == vm.last


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
            record(vm, context, "late_start", start_ns, {"customer_id": customer_id})
    elif vm.explicit and start_ns == vm.start_ns:
        context.effects.tallies["duplicate_starts"] += 1
    elif not vm.explicit and vm.previous_end_ns <= start_ns <= vm.start_ns:
        _make_explicit(vm, start_ns, context)
    elif vm.running and start_ns > vm.last_ns:
        record(vm, context, "missed_stop", start_ns, {"end_ns": vm.last_ns})
        vm.running, vm.end_ns = False, vm.last_ns
        _supersede(vm, context, "missed_stop")
        _open(vm, customer_id, start_ns, explicit=True)
    elif not vm.running and start_ns >= vm.end_ns:
        _supersede(vm, context)
        _open(vm, customer_id, start_ns, explicit=True)
    else:
        record(vm, context, "late_start", start_ns, {"customer_id": customer_id})
    return True


def fold_stop(vm: Vm, stop_ns: int, context: Context) -> bool:
    """Fold a stop notification. True where the session ended, now or at another time than before."""
    if not vm.ordinal:
        record(vm, context, "unknown_stop", stop_ns, {})
    elif stop_ns < vm.start_ns:
        record(vm, context, "late_stop", stop_ns, {})
    elif stop_ns < vm.last_ns:
        record(vm, context, "contradicted_stop", stop_ns, {"last_ns": vm.last_ns})
    elif vm.running:
        _end_with_tail(vm, stop_ns, context)
        return True
    elif stop_ns == vm.end_ns:
        context.effects.tallies["duplicate_stops"] += 1
    elif stop_ns > vm.end_ns:
        record(vm, context, "extra_stop", stop_ns, {"end_ns": vm.end_ns})
    else:
        record(vm, context, "earlier_stop", stop_ns, {"end_ns": vm.end_ns})
        _take_tail_back(vm, context)
        _end_with_tail(vm, stop_ns, context)
        return True
    return False


def _open(vm: Vm, customer_id: str, start_ns: int, *, explicit: bool) -> None:
    vm.sampled_at_start = start_ns == vm.last_ns and (vm.samples > 0 or vm.sampled_at_start)
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
    vm.origin = first_amounts(vm, sample)
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
    vm.sampled_at_start = False
    vm.samples += 1
    vm.peak_bytes = max(vm.peak_bytes, memory_bytes)
    vm.window_base[-1] = max(vm.window_base[-1], memory_bytes)
    context.effects.tallies["samples"] += 1
    post(vm, context, time_ns, context.rules.bucket_ns, Posting(vm.customer_id, NO_AMOUNTS, 0, 0, 1, memory_bytes))


def _step(vm: Vm, sample: Sample, item: int, context: Context) -> None:
    """From the newest sample (or an explicit start) to this one."""
    first = not vm.samples
    step_ns = sample[0] - vm.last_ns
    amounts = first_amounts(vm, sample) if first and vm.explicit else step_amounts(vm, sample, item, context)
    if not plausible(amounts, step_ns, context.rules):
        record(vm, context, "implausible", sample[0], {"amounts": list(amounts), "step_ns": step_ns}, item)
        amounts = NO_AMOUNTS
    memory_bytes = 0 if first else vm.memory_bytes
    bill_span(vm, vm.last_ns, sample[0], amounts, memory_bytes, "start" if first else "step", context)
    _accept(vm, sample, context)


def _make_explicit(vm: Vm, start_ns: int, context: Context) -> None:
    """The start of an implicit session came: the time before its first sample is the session's too."""
    first_ns = vm.start_ns
    amounts = vm.origin or NO_AMOUNTS
    vm.start_ns, vm.explicit, vm.origin = start_ns, True, None
    if not plausible(amounts, first_ns - start_ns, context.rules):
        detail = {"amounts": list(amounts), "step_ns": first_ns - start_ns}
        record(vm, context, "implausible", start_ns, detail)
        amounts = NO_AMOUNTS
    bill_span(vm, start_ns, first_ns, amounts, 0, "start", context)


def _end_with_tail(vm: Vm, end_ns: int, context: Context) -> None:
    """End the session, bill up to its end, and sum it up."""
    rules = context.rules
    vm.running, vm.end_ns = False, end_ns
    vm.tail = Tail(rules.bucket_ns, end_ns - vm.last_ns > rules.gap_threshold_ns)
    if vm.tail.is_gap:
        bill_gap(vm, vm.last_ns, end_ns, NO_AMOUNTS, "stop", context)
    else:
        bill_measured(vm, vm.last_ns, end_ns, NO_AMOUNTS, _tail_memory(vm), rules.bucket_ns, context)
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
        bill_measured(vm, vm.last_ns, vm.end_ns, NO_AMOUNTS, _tail_memory(vm), vm.tail.bucket_ns, context, sign=-1)
    vm.running, vm.end_ns = True, 0


def _tail_memory(vm: Vm) -> int:
    return vm.memory_bytes if vm.samples else 0
