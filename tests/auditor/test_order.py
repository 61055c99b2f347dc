"""The law of the timeline: the bill is a function of the points in order of time, in whatever order they came."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import pytest

from auditor.biller import Biller
from auditor.chooser import SeededChooser
from auditor.events import MINUTE_NS, SECOND_NS, Batch, Event, Rules, Sample, Started, Stopped, Tick, What
from auditor.journal import VM, at
from auditor.timeline import Timeline
from auditor.usage import Usage
from auditor.walk import walk

# Steps of more than a minute are gaps, buckets have 90 s, a core and a byte a nanosecond are the caps.
RULES = Rules(MINUTE_NS, 90 * SECOND_NS, max_cores=1, max_gigabytes_per_second=1)


def points(chooser: SeededChooser, count: int) -> list[What]:
    """Of one VM: counters that rise, fall and jump, starts and stops, often several of one time."""
    when, cpu, disk = 0, 0, 0
    seen: set[tuple[type, int]] = set()
    result: list[What] = []
    while len(result) < count:
        when += chooser.pick((0, 0, 1, 10, 60, 61, 200))
        cpu = max(0, cpu + chooser.pick((1, 5, 5 * 10**9, 0, -3, -(10**10), 70 * 10**9)))
        disk = max(0, disk + chooser.pick((1, 7, 100, -50, 10**12)))
        sort = chooser.pick((Batch, Batch, Batch, Started, Stopped))
        if (sort, when) in seen:
            continue
        seen.add((sort, when))
        if sort is Batch:
            result.append(Batch(VM, "acme", [Sample(at(when), chooser.pick((0, 2**30, 3)), cpu, disk, 0, 0, 0)]))
        elif sort is Started:
            result.append(Started(VM, "acme", at(when)))
            cpu = chooser.pick((cpu, 0, 4))
        else:
            result.append(Stopped(VM, at(when)))
    return result


def in_order(what: What) -> tuple[int, int]:
    """As they count: of one time a start, then a sample, then a stop."""
    if isinstance(what, Started):
        return what.start_ns, 0
    if isinstance(what, Batch):
        return what.samples[0][0], 1
    assert isinstance(what, Stopped)
    return what.stop_ns, 2


def fold(events: list[What]) -> Biller:
    biller = Biller()
    for sequence, what in enumerate([RULES, *events], start=1):
        biller.fold(Event(sequence, at(sequence), "", what))
    return biller


def accepted(biller: Biller) -> int:
    """How many points are in the timeline."""
    instants = biller.vms[VM].timeline.instants
    return sum(instant.holds("start") + instant.holds("sample") + instant.holds("stop") for instant in instants)


def billed(biller: Biller) -> tuple[object, ...]:
    """The bill, but for numbers, sequences, peaks and rows of nothing: sessions are named by their starts."""
    bill = biller.bill()
    bill.check()
    starts = {row["ordinal"]: row["start_ns"] for row in bill.rows("sessions")}
    sessions = sorted((row[3:8], row[8:17]) for row in bill.tables["sessions"])
    used: defaultdict[tuple[int, int, int], Usage] = defaultdict(Usage)
    for table, first in (("facts", 0), ("corrections", 1)):
        for row in bill.tables[table]:
            start, length, _, ordinal, _, *counters, mib_seconds, rest, measured, samples = row[first : first + 14]
            used[starts[ordinal], start, length] += Usage(
                tuple(counters[:5]), mib_seconds * 2**20 * 10**9 + rest, measured, samples
            )
    gaps = sorted(
        (starts[row["ordinal"]], row["start_ns"], row["end_ns"], row["kind"], *counters_of(row))
        for row in bill.rows("gaps")
    )
    return sessions, {key: usage for key, usage in used.items() if usage}, gaps


def counters_of(row: dict[str, Any]) -> list[int]:
    return [row[name] for name in ("cpu_time_ns", "disk_read_bytes")]


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_every_order_of_arrival_gives_the_same_bill(first: int) -> None:
    """All orders of few points, whose places all are open: what is refused is on record, and is left out here."""
    orders: Counter[str] = Counter()
    for seed in range(first, first + 100):
        chooser = SeededChooser(seed)
        events = sorted(points(chooser, chooser.between(2, 9)), key=in_order)
        expected = billed(fold(events))
        assert accepted(fold(events)) == len(events)
        several = list(permutations(events)) if len(events) <= 3 else [shuffled(chooser, events) for _ in range(12)]
        for order in several:
            biller = fold(list(order))
            if accepted(biller) < len(events):
                orders["refused"] += 1
                continue
            orders["whole"] += 1
            assert billed(biller) == expected, (seed, order)
    assert orders["whole"] > 3 * orders["refused"]


def test_ticks_between_move_what_is_posted_and_not_what_it_comes_to() -> None:
    for seed in range(100):
        chooser = SeededChooser(seed)
        events = sorted(points(chooser, 7), key=in_order)
        late = shuffled(chooser, events)
        # All buckets close on the way.
        late[3:3] = [Tick(at(100 * minute), 10 * MINUTE_NS, True) for minute in range(3)]
        biller = fold(late)
        if accepted(biller) == len(events):
            assert billed(biller) == billed(fold(events)), seed


def test_a_batch_is_its_samples_in_any_order() -> None:
    """Each sample by itself, or all at once and unsorted."""
    for seed in range(100):
        chooser = SeededChooser(seed)
        rows = [what for what in points(chooser, 9) if isinstance(what, Batch)]
        if rows:
            whole = Batch(VM, "acme", [row.samples[0] for row in shuffled(chooser, rows)])
            assert billed(fold([whole])) == billed(fold(sorted(rows, key=in_order)))


def test_the_timeline_always_is_what_one_walk_from_its_beginning_says() -> None:
    for seed in range(150):
        chooser = SeededChooser(seed)
        timeline = fold(shuffled(chooser, points(chooser, 12))).vms[VM].timeline
        assert walked_anew(timeline) == [each.after for each in timeline.walked], seed


def walked_anew(timeline: Timeline) -> list[object]:
    state, states = timeline.begin, []
    for instant in timeline.instants:
        state = walk(state, instant, timeline.implicit_ordinal or 0, "acme").after
        states.append(state)
    return list(states)


def shuffled(chooser: SeededChooser, events: Sequence[What]) -> list[Any]:
    left, result = list(events), []
    while left:
        result.append(left.pop(chooser.between(0, len(left) - 1)))
    return result
