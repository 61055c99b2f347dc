"""A clean run: what a small fleet did, each VM's points in order of time, with everything an honest VM may do."""

from __future__ import annotations

from typing import NamedTuple

from auditor.chooser import Chooser
from auditor.events import HOUR_NS, MINUTE_NS, SECOND_NS, Batch, Event, Rules, Sample, Started, Stopped, Tick, What
from auditor.machine import EPOCH_NS

CUSTOMER = "acme"
GIB = 2**30


class Point(NamedTuple):
    """A batch of one sample, a start or a stop. ``vm_id`` and ``time_ns`` are its own."""

    time_ns: int
    vm_id: str
    what: What


def clean_run(chooser: Chooser, vms_max: int = 3, *, steps_ns: tuple[int, ...], mishaps: bool = True) -> list[Point]:
    """All points of all VMs in order of time; ``steps_ns`` from sample to sample."""
    points: list[Point] = []
    for number in range(1, chooser.between(1, vms_max) + 1):
        points += _life(chooser, f"vm-{number}", steps_ns, mishaps=mishaps)
    return sorted(points, key=lambda point: point.time_ns)


def _life(chooser: Chooser, vm_id: str, steps_ns: tuple[int, ...], *, mishaps: bool) -> list[Point]:
    points: list[Point] = []
    pick = chooser.pick
    now_ns = EPOCH_NS + pick((0, 1, 59 * MINUTE_NS))
    counters, mark = [pick((0, 10**6))] * 5, 0
    # One sample in so many falls.
    seldom = pick((3, 11)) if mishaps and pick((True, False)) else 0
    sessions = chooser.between(1, 3)
    for session in range(sessions):
        if session or pick((True, False)):
            points.append(Point(now_ns, vm_id, Started(vm_id, CUSTOMER, now_ns)))
            if pick((True, False)):
                counters = [pick((0, 3))] * 5
            now_ns += pick((0, 1, SECOND_NS, *steps_ns))
        for _ in range(chooser.between(0 if session else 1, chooser.pick((8, 2, 30)))):
            sample = Sample(now_ns, pick((GIB, GIB, 2 * GIB, 0)), *counters)
            points.append(Point(now_ns, vm_id, Batch(vm_id, CUSTOMER, [sample])))
            now_ns += pick(steps_ns)
            rise = pick((SECOND_NS, 1, 0, 7))
            if seldom and pick((*(False,) * seldom, True)):
                fallen = pick((0, counters[0] // 2, max(mark - 1, 0), mark, mark + 1))
                mark = max(mark, counters[0])
                counters = [fallen, *[value + rise for value in counters[1:]]]
            else:
                counters = [value + rise for value in counters]
        if pick((True, True, False)):
            # At the last sample's own time, soon after it, or long after.
            last_ns = points[-1].time_ns if points else now_ns
            stop_ns = max(last_ns, pick((last_ns, last_ns + SECOND_NS, now_ns, last_ns + HOUR_NS)))
            points.append(Point(stop_ns, vm_id, Stopped(vm_id, stop_ns)))
            now_ns = max(now_ns, stop_ns)
        now_ns = max(now_ns, points[-1].time_ns) + pick((0, SECOND_NS, 5 * MINUTE_NS, 3 * HOUR_NS))
    return _one_of_a_sort(points)


def _one_of_a_sort(points: list[Point]) -> list[Point]:
    """At one time at most one of each sort: the first."""
    seen: dict[tuple[int, type], Point] = {}
    for point in points:
        seen.setdefault((point.time_ns, type(point.what)), point)
    return list(seen.values())


def journal_of(whats: list[What], rules: Rules) -> list[Event]:
    """The journal that takes them in this order."""
    return [Event(sequence, EPOCH_NS, "", what) for sequence, what in enumerate([rules, *whats], 1)]


def in_order(points: list[Point], rules: Rules) -> list[Event]:
    """The journal of an ideal network: each point alone, once, in order of time; at one time stop, start, sample."""
    order = {Stopped: 0, Started: 1, Batch: 2}
    ordered = sorted(points, key=lambda point: (point.time_ns, order[type(point.what)]))
    return journal_of([point.what for point in ordered], rules)


def tick_at(time_ns: int, length_ns: int) -> Tick:
    return Tick(time_ns, length_ns, True)
