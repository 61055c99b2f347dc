"""Where usage is posted: a span's parts to their buckets, or the span to a gap."""

from __future__ import annotations

from billaged.aggregator.effects import NO_AMOUNTS, Amounts, FactKey, GapRow, Posting
from billaged.aggregator.vm import Context, Vm
from billaged.model.records import COUNTERS


def bill_span(
    vm: Vm, start_ns: int, end_ns: int, amounts: Amounts, memory_bytes: int, kind: str, context: Context
) -> None:
    """Bill a span as measured, or as a gap where it is longer than the threshold."""
    for index in range(COUNTERS):
        vm.counters[index] += amounts[index]
    if end_ns - start_ns > context.rules.gap_threshold_ns:
        bill_gap(vm, start_ns, end_ns, amounts, kind, context)
    else:
        bill_measured(vm, start_ns, end_ns, amounts, memory_bytes, context.rules.bucket_ns, context)


def bill_gap(vm: Vm, start_ns: int, end_ns: int, amounts: Amounts, kind: str, context: Context) -> None:
    vm.gap_ns += end_ns - start_ns
    row = GapRow(vm.vm_id, vm.ordinal, start_ns, end_ns, kind, vm.customer_id, amounts, context.sequence)
    context.effects.gaps[vm.vm_id, vm.ordinal, start_ns] = row


def bill_measured(
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
    if span_ns and sign > 0:
        vm.window_base[-1] = max(vm.window_base[-1], memory_bytes)
    vm.memory_byte_nanos += sign * memory_bytes * span_ns
    if not span_ns:
        if any(amounts):
            post(vm, context, end_ns, bucket_ns, Posting(vm.customer_id, amounts, 0, 0, 0, 0))
        return
    before = NO_AMOUNTS
    edge = start_ns
    while edge < end_ns:
        next_edge = min(edge - edge % bucket_ns + bucket_ns, end_ns)
        passed_ns, part_ns = next_edge - start_ns, sign * (next_edge - edge)
        until: Amounts = tuple(amount * passed_ns // span_ns for amount in amounts)  # type: ignore[assignment]
        part: Amounts = tuple(map(int.__sub__, until, before))  # type: ignore[assignment]
        post(vm, context, edge, bucket_ns, Posting(vm.customer_id, part, memory_bytes * part_ns, part_ns, 0, 0))
        edge, before = next_edge, until


def post(vm: Vm, context: Context, at_ns: int, bucket_ns: int, posting: Posting) -> None:
    """Post to the bucket that holds ``at_ns``."""
    key = FactKey(at_ns - at_ns % bucket_ns, bucket_ns, vm.vm_id, vm.ordinal)
    context.effects.post(context.sequence, key, posting, context.closed_through_ns)
