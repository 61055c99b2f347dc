"""A point after the newest instant: one step further along the timeline."""

from __future__ import annotations

from typing import Final

from billaged.aggregator.billed import CLOSED_STEP_GAP, CONTRADICTED, OUT_OF_LINE, PASSED
from billaged.aggregator.insertion import Point
from billaged.aggregator.instant import Instant, Kept
from billaged.aggregator.settling import settle
from billaged.aggregator.state import NONE
from billaged.aggregator.vm import Context, Vm
from billaged.aggregator.walk import walk

CAUSE: Final = "step"
# So many links into samples are open for good after one that closed a gap or contradicted a stop.
_FOLLOWING: Final = 8


def append(vm: Vm, point: Point, context: Context, item: int = 0) -> None:
    opens = 0
    if point.sort == "start" or (point.sort == "sample" and vm.state.phase == NONE):
        vm.highest += 1
        opens = vm.highest
    instant = point.put_at(Instant(point.time_ns, opens))
    before = vm.state
    after, billed = walk(before, instant, context.rules, context.book)
    is_first = vm.newest_ns is None
    is_open = is_first or instant.is_bound or vm.newest_start or vm.newest_stop
    is_open = is_open or bool(billed.notable & (OUT_OF_LINE | PASSED))
    if point.sort != "sample":
        vm.follow = 0
    elif vm.follow:
        is_open = True
        vm.follow -= 1
    if billed.notable & (CLOSED_STEP_GAP | CONTRADICTED):
        vm.follow = _FOLLOWING
    _forget_previous(vm, context)
    if is_open and not is_first and not vm.newest_stored:
        vm.keep(vm.newest_kept(), context)
    kept = Kept(instant, context.rules, is_open, after)
    if is_open:
        floor_ns = vm.floor_ns if is_first else 0
        kept = kept._replace(before=before, is_first=is_first, floor_ns=floor_ns)
        context.effects.keep(vm.vm_id, vm.number, instant.time_ns, kept)
    if vm.timeline is not None:
        vm.timeline.put(kept)
    vm.previous = vm.newest_sample
    vm.newest_ns, vm.newest_start, vm.newest_stop = instant.time_ns, instant.has_start, instant.has_stop
    vm.newest_stored, vm.link_rules = is_open, context.rules
    vm.state = after
    settle(vm, before, (), (billed,), after, context, CAUSE, item)


def _forget_previous(vm: Vm, context: Context) -> None:
    """The instant before the newest one is not one of the newest two any more."""
    if vm.previous_loose and vm.previous is not None:
        context.effects.keep(vm.vm_id, vm.number, vm.previous[0], None)
        vm.previous_loose = False
    if vm.timeline is not None and len(vm.timeline) > 1:
        previous, newest = vm.timeline.kept[-2:]
        if not (previous.is_open or previous.is_first or newest.is_open):
            vm.timeline.drop(previous.instant.time_ns)
