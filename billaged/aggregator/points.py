"""One record of one VM: where its points go, and what becomes of those that have no place."""

from __future__ import annotations

from billaged.aggregator.appending import append
from billaged.aggregator.insertion import Point, insert
from billaged.aggregator.state import State
from billaged.aggregator.timeline import Timeline
from billaged.aggregator.vm import Context, Sample, Vm


def fold_samples(vm: Vm, customer_id: str, samples: list[Sample], context: Context) -> bool:
    """Fold one batch, sorted by time. False where it belongs to another customer: a dead letter.

    Raises:
        NotAtHand: the VM's kept instants are needed first.
    """
    if vm.session is not None and vm.customer_id != customer_id:
        if vm.is_running or not samples or not _may_begin(vm, samples[0][0]):
            return False
        _begin_timeline(vm, context)
    if samples:
        vm.customer_id = customer_id
    for item, sample in enumerate(samples):
        context.progress.points += 1
        _fold_sample(vm, sample, item, context)
    return True


def _fold_sample(vm: Vm, sample: Sample, item: int, context: Context) -> None:
    time_ns, tallies = sample[0], context.effects.tallies
    known: Sample | None
    if vm.newest_ns is None or time_ns > vm.newest_ns:
        _live_on(vm, time_ns, context, item, is_sample=True)
        append(vm, Point.of_sample(sample), context, item)
        tallies["samples"] += 1
        return
    if time_ns == vm.newest_ns:
        known = vm.newest_sample
    elif vm.previous is not None and time_ns == vm.previous[0]:
        known = vm.previous
    else:
        known = _kept_sample(vm, time_ns, context)
    if known is not None:
        if tuple(known) == tuple(sample):
            tallies["duplicates"] += 1
        else:
            tallies["conflicts"] += 1
            vm.record(context, "conflict", time_ns, {"values": list(sample[1:])}, item)
        return
    if time_ns == vm.newest_ns:
        vm.at_hand()
        _live_on(vm, time_ns, context, item, is_sample=True)
    if insert(vm, Point.of_sample(sample), context, item):
        tallies["samples"] += 1
        tallies["backfilled"] += 1
    else:
        tallies["late"] += 1
        vm.record(context, "late", time_ns, {"values": list(sample[1:])}, item)


def _kept_sample(vm: Vm, time_ns: int, context: Context) -> Sample | None:
    timeline = vm.at_hand()
    index = timeline.place(time_ns)
    if index >= timeline.first_kept(context.horizon_ns) and timeline.times[index] == time_ns:
        values = timeline.kept[index].instant.sample
        return None if values is None else (time_ns, *values)
    return None


def fold_start(vm: Vm, customer_id: str, start_ns: int, context: Context) -> bool:
    """Fold a start notification. False where it belongs to another customer: a dead letter.

    Raises:
        NotAtHand: the VM's kept instants are needed first.
    """
    if vm.session is not None and vm.customer_id != customer_id:
        if vm.is_running:
            return False
        if not _may_begin(vm, start_ns):
            vm.record(context, "late_start", start_ns, {"customer_id": customer_id})
            return True
        _begin_timeline(vm, context)
    elif _is_known_start(vm, start_ns, context):
        context.effects.tallies["duplicate_starts"] += 1
        return True
    vm.customer_id = customer_id
    context.progress.points += 1
    if not _put(vm, Point("start", start_ns), context):
        vm.record(context, "late_start", start_ns, {"customer_id": customer_id})
    return True


def _is_known_start(vm: Vm, start_ns: int, context: Context) -> bool:
    if vm.session is not None and vm.session.explicit and vm.session.start_ns == start_ns:
        return True
    if vm.newest_ns is None or start_ns > vm.newest_ns:
        return False
    if start_ns == vm.newest_ns:
        return vm.newest_start
    timeline = vm.at_hand()
    index = timeline.place(start_ns)
    is_kept = index >= timeline.first_kept(context.horizon_ns) and timeline.times[index] == start_ns
    return is_kept and timeline.kept[index].instant.has_start


def fold_stop(vm: Vm, stop_ns: int, context: Context) -> None:
    """Fold a stop notification.

    Raises:
        NotAtHand: the VM's kept instants are needed first.
    """
    if _is_known_stop(vm, stop_ns, context):
        context.effects.tallies["duplicate_stops"] += 1
        return
    context.progress.points += 1
    if _put(vm, Point("stop", stop_ns), context):
        return
    session = vm.session
    if session is not None and session.start_ns <= stop_ns < session.last_ns:
        vm.record(context, "contradicted_stop", stop_ns, {"sample_ns": session.last_ns})
    else:
        vm.record(context, "late_stop", stop_ns, {})


def _is_known_stop(vm: Vm, stop_ns: int, context: Context) -> bool:
    if vm.newest_ns is None or stop_ns > vm.newest_ns:
        return False
    if stop_ns == vm.newest_ns:
        return vm.newest_stop
    timeline = vm.at_hand()
    index = timeline.place(stop_ns)
    is_kept = index >= timeline.first_kept(context.horizon_ns) and timeline.times[index] == stop_ns
    return is_kept and timeline.kept[index].instant.has_stop


def _put(vm: Vm, point: Point, context: Context) -> bool:
    """Append a start or stop, or insert it. False where it has no place."""
    if vm.newest_ns is None or point.time_ns > vm.newest_ns:
        _live_on(vm, point.time_ns, context, 0, is_sample=False)
        append(vm, point, context)
        return True
    if point.time_ns == vm.newest_ns:
        vm.at_hand()
        _live_on(vm, point.time_ns, context, 0, is_sample=False)
    return insert(vm, point, context)


def _live_on(vm: Vm, at_ns: int, context: Context, item: int, *, is_sample: bool) -> None:
    """A point is appended, or put at the newest instant: the VM is there."""
    if vm.is_listened_for or vm.is_vanished:
        vm.is_listened_for = False
        context.effects.heard_again.append((vm.vm_id, at_ns))
    if vm.is_vanished:
        vm.is_vanished = False
        if is_sample:
            vm.record(context, "returned", vm.state.last_ns, {"sample_ns": at_ns}, item)


def _may_begin(vm: Vm, time_ns: int) -> bool:
    """Whether another customer's timeline may begin there: the session has ended."""
    return time_ns >= vm.end_ns and (vm.newest_ns is None or time_ns >= vm.newest_ns)


def _begin_timeline(vm: Vm, context: Context) -> None:
    """Another customer's: what was before can change no more."""
    session = vm.session
    if session is None:
        raise ValueError(f"VM {vm.vm_id} has no session to follow")
    if vm.is_vanished:
        session.end_ns, session.end_kind = session.last_ns, "vanished"
    if session.totals_without_peak() != session.window_base:
        context.effects.finals.append(session.summarise(context.received_ns))
    context.effects.supersede(session)
    vm.floor_ns = vm.end_ns
    vm.is_vanished = False
    vm.number += 1
    vm.state = State(last=vm.state.last, marks=vm.state.marks)
    vm.newest_ns, vm.newest_start, vm.newest_stop, vm.newest_stored = None, False, False, False
    vm.previous, vm.previous_loose, vm.follow = None, False, 0
    vm.timeline = Timeline(vm.number)
