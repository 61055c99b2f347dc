"""Hostile deliveries: what a network does to the points of a clean run does not change the bill.

Each test takes a clean run, delivers it duplicated, delayed, reordered, replayed and packed anew, and compares
with the bill of an ideal network. The engine and the auditor both read every delivery.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from auditor.bill import Bill
from auditor.biller import bill
from auditor.chooser import Chooser, DrawnChooser, SeededChooser
from auditor.events import COUNTER_NAMES, HOUR_NS, MINUTE_NS, Batch, Event, Rules, Sample, Started, Stopped, What
from auditor.machine import EPOCH_NS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulation.clean import CUSTOMER, GIB, Point, clean_run, in_order, journal_of
from simulation.delivery import Fates, after_an_outage, delivered, shuffled, swapped
from simulation.shape import Shape, shape_of
from test_ledger_bill import ledger_of

RULES = Rules(bucket_ns=15 * MINUTE_NS)
DENSE_NS = (MINUTE_NS, 5 * MINUTE_NS, 15 * MINUTE_NS)
SPARSE_NS = (15 * MINUTE_NS + 1, HOUR_NS, 7 * HOUR_NS)
ANY_NS = (*DENSE_NS, *SPARSE_NS)
# What nobody could place.
REFUSALS = {"late", "late_start", "late_stop", "conflict"}
# Two of them, or more, are not told from each other: see Fates.doubtful.
DOUBTFUL_MAX = 4

drawn = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def of_clean_run(points: list[Point]) -> Shape:
    audited = bill(in_order(points, RULES))
    audited.check()
    return shape_of(audited)


def read_by_both(events: list[Event], seed: int) -> Bill:
    """The auditor's bill of a delivery, once the engine has come to the same ledger."""
    audited = bill(events)
    audited.check()
    assert audited.differences(ledger_of(events, SeededChooser(seed))) == []
    return audited


def rises(points: list[Point]) -> Counter[tuple[str, str]]:
    """The sum of each counter's positive steps, by VM; after a start it rose from zero."""
    sums: Counter[tuple[str, str]] = Counter()
    last: dict[str, tuple[int, ...]] = {}
    order = {Stopped: 0, Started: 1, Batch: 2}
    for point in sorted(points, key=lambda point: (point.time_ns, order[type(point.what)])):
        if isinstance(point.what, Started):
            last[point.vm_id] = (0,) * 5
        elif isinstance(point.what, Batch):
            counters = Sample(*point.what.samples[0]).counters
            before = last.get(point.vm_id, counters)
            for name, value, low in zip(COUNTER_NAMES, counters, before, strict=True):
                sums[point.vm_id, name] += max(value - low, 0)
            last[point.vm_id] = counters
    return sums


def check_accounts(audited: Bill, events: list[Event], fates: Fates) -> None:
    """Each delivery of each point is billed, known as a duplicate, or on record; every time is in an account."""
    tallies: Counter[str] = Counter(dict(audited.tables["tallies"]))
    assert not audited.tables["dead_letters"]
    told = tallies["samples"] + tallies["duplicates"] + tallies["conflicts"] + tallies["late"]
    assert told == fates.count("sample")
    for row in audited.rows("sessions"):
        until_ns = row["last_ns"] if row["end_ns"] is None else row["end_ns"]
        assert row["measured_ns"] + row["gap_ns"] == until_ns - row["start_ns"]


def check_no_more_than(points: list[Point], audited: Bill) -> None:
    most = rises(points)
    billed: Counter[tuple[str, str]] = Counter()
    for row in audited.rows("sessions"):
        billed.update({(row["vm_id"], name): row[name] for name in COUNTER_NAMES})
    assert {key: (value, most[key]) for key, value in billed.items() if value > most[key]} == {}


def check_any_delivery(chooser: Chooser, seed: int) -> None:
    """The bill of the clean run; where something was refused, no counter is billed more than it rose."""
    points = clean_run(chooser, steps_ns=chooser.pick((ANY_NS, DENSE_NS)))
    events = journal_of(delivered(chooser, points), RULES)
    audited = read_by_both(events, seed)
    check_no_more_than(points, audited)
    check_only_the_refused_are_missing(audited, events)


def check_conflicting_delivery(chooser: Chooser, seed: int) -> None:
    """Some samples come with other values, too: one of each time is billed, the others are on record."""
    points = clean_run(chooser, steps_ns=chooser.pick((ANY_NS, DENSE_NS)))
    events = journal_of(delivered(chooser, points, changed=True), RULES)
    check_only_the_refused_are_missing(read_by_both(events, seed), events)


def check_only_the_refused_are_missing(audited: Bill, events: list[Event]) -> None:
    """The bill is that of a clean run of what was taken: what is on record as refused has no effect at all."""
    fates = Fates(audited, events)
    check_accounts(audited, events, fates)
    shape, taken, doubtful = shape_of(audited), fates.taken(), fates.doubtful[:DOUBTFUL_MAX]
    without = [set(some) for count in range(len(doubtful) + 1) for some in combinations(map(str, doubtful), count)]
    differences = [
        shape.differences(of_clean_run([point for point in taken if str(point) not in some])) for some in without
    ]
    assert min(differences, key=len) == []


def check_open_places(points: list[Point], whats: list[What], seed: int) -> None:
    events = journal_of(whats, RULES)
    audited = read_by_both(events, seed)
    assert {row["kind"] for row in audited.rows("anomalies")} & REFUSALS == set()
    assert shape_of(audited).differences(of_clean_run(points)) == []


def check_sparse(chooser: Chooser, seed: int) -> None:
    """Every step is a gap, every place is open: any order at all."""
    points = clean_run(chooser, vms_max=2, steps_ns=SPARSE_NS)
    check_open_places(points, shuffled(chooser, points), seed)


def check_swapped(chooser: Chooser, seed: int) -> None:
    """The newest step is open: a point that comes one too late is in its place."""
    points = clean_run(chooser, steps_ns=ANY_NS)
    check_open_places(points, swapped(chooser, points), seed)


def check_outage(chooser: Chooser, seed: int) -> None:
    """A gap is open for good: a backlog comes behind what is live."""
    points = clean_run(chooser, steps_ns=DENSE_NS, mishaps=False)
    check_open_places(points, after_an_outage(chooser, points, RULES.gap_threshold_ns), seed)


def check_outage_with_resets(chooser: Chooser, seed: int) -> None:
    """What followed a gap was billed before the decreases in it were known: their marks are carried on, or refused."""
    points = clean_run(chooser, steps_ns=DENSE_NS)
    events = journal_of(after_an_outage(chooser, points, RULES.gap_threshold_ns), RULES)
    check_only_the_refused_are_missing(read_by_both(events, seed), events)


def check_mark_from_a_gap(chooser: Chooser, seed: int) -> None:
    """The highest value before a reset was in a gap, and comes when the counter is on its way up again, or beyond."""
    high = 1_000
    values = [high, *range(10, 10 + chooser.between(1, 30))]
    beyond = len(values)
    for _ in range(chooser.between(0, 6)):
        values.append(max(values[-1], high + chooser.pick((-1, 0, 1, 4, 5, 6))))
    times_ns = [EPOCH_NS, *(EPOCH_NS + (40 + minute) * MINUTE_NS for minute in range(len(values) - 1))]
    batches: list[What] = [
        Batch("vm-1", CUSTOMER, [Sample(time_ns, GIB, value, value, value, value, value)])
        for time_ns, value in zip(times_ns, values, strict=True)
    ]
    value = high + 5
    held = Batch("vm-1", CUSTOMER, [Sample(EPOCH_NS + 5 * MINUTE_NS, GIB, value, value, value, value, value)])
    batches.insert(chooser.pick((beyond, len(batches), chooser.between(2, len(batches)))), held)
    events = journal_of(batches, RULES)
    check_only_the_refused_are_missing(read_by_both(events, seed), events)


CHECKS = [
    *(check_any_delivery, check_conflicting_delivery, check_sparse, check_swapped),
    *(check_outage, check_outage_with_resets, check_mark_from_a_gap),
]


@pytest.mark.parametrize("check", CHECKS)
@drawn
@given(data=st.data())
def test_drawn_deliveries(check, data: st.DataObject) -> None:
    check(DrawnChooser(data.draw), 7)


@pytest.mark.parametrize("first_seed", range(0, 60, 20))
@pytest.mark.parametrize("check", CHECKS)
def test_seeded_deliveries(check, first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 20):
        try:
            check(SeededChooser(seed), seed)
        except Exception as error:
            raise AssertionError(f"{check.__name__}, seed {seed}: {error}") from error


def test_the_comparison_notices_a_lost_point() -> None:
    """The judge can say no: without any one point that bills something the shape is another."""
    minutes = [
        Point(
            minute * MINUTE_NS, "vm-1", Batch("vm-1", "acme", [Sample(minute * MINUTE_NS, 2**30, minute, 0, 0, 0, 0)])
        )
        for minute in range(10**8, 10**8 + 5)
    ]
    end_ns = minutes[-1].time_ns + MINUTE_NS
    points = [*minutes, Point(end_ns, "vm-1", Stopped("vm-1", end_ns))]
    whole = of_clean_run(points)
    for lost in points:
        assert whole.differences(of_clean_run([point for point in points if point != lost])) != []


def test_a_refused_point_is_known_as_refused() -> None:
    whats: list[What] = [
        Batch("vm-1", "acme", [Sample(minute * MINUTE_NS, 0, 0, 0, 0, 0, 0)]) for minute in range(10**8, 10**8 + 6)
    ]
    late = Batch("vm-1", "acme", [Sample(10**8 * MINUTE_NS + 30, 0, 0, 0, 0, 0, 0)])
    events = journal_of([*whats, late, whats[-1]], RULES)
    fates = Fates(bill(events), events)
    assert [point.time_ns for point in fates.refused()] == [10**8 * MINUTE_NS + 30]
    assert len(fates.taken()) == 6
