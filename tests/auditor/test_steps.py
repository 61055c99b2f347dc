"""Steps by hand: counters and their marks, caps, memory, and a session that turns out to have had a start."""

from __future__ import annotations

import pytest

from auditor.events import SECOND_NS, Rules
from auditor.invariants import Row
from auditor.journal import GIB, Journal, sample, second
from auditor.meter import Meter


def steps(*values: int) -> list[int]:
    """What each value after the first bills, the first being a baseline."""
    billed, now = [], meter(values[0])
    for value in values[1:]:
        billed.append(now.ordinary_amount(value))
        now = now.after(value)
    return billed


def meter(*values: int) -> Meter:
    """One that has gone along these."""
    result = Meter()
    for value in values:
        result = result.after(value)
    return result


@pytest.mark.parametrize(
    ("values", "billed"),
    [
        pytest.param((100, 150, 150), [50, 0], id="more"),
        pytest.param((1000, 0, 1001), [0, 1], id="a failed read"),
        pytest.param((1000, 0, 1000, 1001), [0, 0, 1], id="back at the mark, which is then gone"),
        pytest.param((1000, 0, 999), [0, 999], id="short of the mark"),
        pytest.param((1000, 400, 700, 1200), [0, 300, 200], id="from the mark, once it is passed"),
        pytest.param((1000, 10, 500, 20, 1100), [0, 490, 0, 100], id="past two marks at once, from the higher one"),
        pytest.param((1000, 10, 500, 20, 510, 1100), [0, 490, 0, 10, 100], id="past two marks, one after the other"),
        pytest.param((5000, 0, 1000, 0, 1001, 0, 1002), [0, 1000, 0, 1, 0, 1], id="failed reads below an old mark"),
        pytest.param((5000, 10, 1000, 10, 1000, 10, 1000), [0, 990, 0, 0, 0, 0], id="two hosts below an old mark"),
        pytest.param(
            (900, 9, 600, 6, 300, 3, 700, 901), [0, 591, 0, 294, 0, 400, 1], id="of three the highest and newest"
        ),
        pytest.param((1000, 10, 2000, 20, 1500), [0, 1000, 0, 1480], id="a new mark after the old one is gone"),
        pytest.param((500, 1000, 500, 1010, 520, 1020), [500, 0, 10, 0, 10], id="two hosts take turns"),
    ],
)
def test_ordinary_steps(values: tuple[int, ...], billed: list[int]) -> None:
    assert steps(*values) == billed


def first_step(before: Meter, value: int) -> tuple[int, int | None, tuple[int, ...]]:
    """(billed, last, marks)"""
    return before.first_amount(value), *before.after_first(value)


def test_first_steps_after_an_explicit_start() -> None:
    assert first_step(meter(), 70) == (70, 70, ())  # never sampled before
    assert first_step(meter(50), 70) == (20, 70, ())  # the counter went on
    assert first_step(meter(50), 50) == (0, 50, ())
    assert first_step(meter(50), 30) == (30, 30, ())  # it counts from zero
    assert first_step(meter(90, 50), 30) == (30, 30, ())  # and the mark is gone
    assert first_step(meter(90, 50), 70) == (20, 70, (90,))  # short of the mark
    assert first_step(meter(90, 50), 95) == (5, 95, ())


def test_baselines_keep_the_marks() -> None:
    assert meter(50) == Meter(50, ())
    assert meter(50, 30) == Meter(30, (50,))
    assert meter(50, 30, 20) == Meter(20, (50, 30))
    assert meter(50, 30, 40) == Meter(40, (50,))
    assert meter(50, 30, 50) == Meter(50, ())


def test_a_mark_is_passed_by_what_reaches_it_and_not_by_a_fall() -> None:
    assert [meter(50, 30).passes(value) for value in (29, 30, 49, 50, 51)] == [False, False, False, True, True]
    assert not meter(50).passes(60)


def test_a_decrease_is_recorded_once_a_sample_with_its_counters() -> None:
    journal = Journal().samples(sample(0, cpu=100, disk=7), sample(10, cpu=60, disk=3), sample(20, cpu=70, disk=2))
    assert journal.anomalies() == [
        (2, 1, "counter_reset", 1, 10, '{"counters":{"cpu_time_ns":[100,60],"disk_read_bytes":[7,3]}}'),
        (2, 2, "counter_reset", 1, 20, '{"counters":{"disk_read_bytes":[3,2]}}'),
    ]
    assert (journal.session()["cpu_time_ns"], journal.session()["disk_read_bytes"]) == (10, 0)


def test_a_baseline_or_a_first_step_below_the_last_value_is_not_recorded() -> None:
    restarted = Journal().start(0).samples(sample(1, cpu=100)).stop(2).start(3).samples(sample(4, cpu=60))
    assert restarted.anomalies() == []
    assert [row["cpu_time_ns"] for row in restarted.sessions()] == [100, 60]
    taken_over = Journal().samples(sample(1, cpu=100)).stop(2)
    taken_over.samples(sample(3, cpu=60), sample(4, cpu=110), customer="globex")
    assert taken_over.anomalies() == []
    # The mark of 100 crossed from one session to the next.
    assert [row["cpu_time_ns"] for row in taken_over.sessions()] == [0, 10]


# A step of 10 s and its second more, 2 cores, 3 bytes a nanosecond.
CAPPED = Rules(max_cores=2, max_gigabytes_per_second=3)


@pytest.mark.parametrize(
    ("cpu", "disk", "billed"),
    [
        (22 * SECOND_NS, 33 * SECOND_NS, (22 * SECOND_NS, 33 * SECOND_NS)),
        (22 * SECOND_NS + 1, 5, (0, 0)),
        (5, 33 * SECOND_NS + 1, (0, 0)),
        (2**62, 2**62, (0, 0)),
    ],
)
def test_a_step_no_machine_could_have_run_bills_nothing_in_any_counter(
    cpu: int, disk: int, billed: tuple[int, int]
) -> None:
    journal = Journal(CAPPED).samples(sample(0, memory=GIB)).samples(sample(10, cpu=cpu, disk=disk))
    session = journal.session()
    assert (session["cpu_time_ns"], session["disk_read_bytes"]) == billed
    # Its time and its memory are as good as any.
    assert (session["measured_ns"], session["memory_mib_seconds"], session["samples"]) == (10 * SECOND_NS, 10240, 2)
    refused = [(3, 0, "implausible", 1, 10, f'{{"amounts":[{cpu},{disk},0,0,0],"step_ns":10000000000}}')]
    assert journal.anomalies() == ([] if billed[0] else refused)


def test_what_was_implausible_is_the_new_baseline() -> None:
    journal = Journal(CAPPED).samples(sample(0), sample(10, cpu=2**61), sample(20, cpu=2**61 + 4))
    assert journal.session()["cpu_time_ns"] == 4


def test_a_mark_passed_by_an_implausible_step_is_gone() -> None:
    values = [(0, 1000), (1, 0), (2, 2**61), (3, 900), (4, 1001)]
    journal = Journal(CAPPED).samples(*(sample(when, cpu=cpu) for when, cpu in values))
    # 900 falls from 2^61, whose mark lies above 1001: so the last step counts from 900, not from 1000.
    assert journal.session()["cpu_time_ns"] == 101
    kinds = [(item, kind) for _, item, kind, *_ in journal.anomalies()]
    assert kinds == [(1, "counter_reset"), (2, "implausible"), (3, "counter_reset")]


def test_memory_holds_its_value_until_the_next_sample() -> None:
    rows = (sample(0, memory=GIB), sample(10, memory=3 * GIB), sample(15, memory=9 * GIB))
    session = Journal().samples(*rows).session()
    assert (session["memory_mib_seconds"], session["memory_rest_byte_nanos"]) == (10 * 1024 + 5 * 3 * 1024, 0)
    assert session["memory_peak_bytes"] == 9 * GIB


def test_memory_keeps_every_byte_nanosecond() -> None:
    session = Journal().samples(sample(0, memory=2**20 + 3), sample(1)).session()
    assert (session["memory_mib_seconds"], session["memory_rest_byte_nanos"]) == (1, 3 * SECOND_NS)


def test_from_a_start_to_the_first_sample_memory_bills_nothing() -> None:
    session = Journal().start(0).samples(sample(600, cpu=9, memory=GIB), sample(601, memory=GIB)).session()
    assert (session["cpu_time_ns"], session["measured_ns"]) == (9, 601 * SECOND_NS)
    assert session["memory_mib_seconds"] == 1024


def gaps(journal: Journal) -> list[tuple[object, ...]]:
    """(start, end, kind, CPU ns, sequence)"""
    rows = journal.bill().rows("gaps")
    return [
        (second(row["start_ns"]), second(row["end_ns"]), row["kind"], row["cpu_time_ns"], row["sequence"])
        for row in rows
    ]


@pytest.mark.parametrize(
    ("seconds", "measured", "gap"),
    [(900, 900 * SECOND_NS, []), (901, 0, [(100, 1001, "step", 40, 3)])],
)
def test_a_step_over_the_threshold_is_a_gap_whose_counters_are_billed(
    seconds: int, measured: int, gap: list[Row]
) -> None:
    journal = Journal().samples(sample(0), sample(100, cpu=2, memory=GIB))
    journal.samples(sample(100 + seconds, cpu=42, memory=GIB))
    session = journal.session()
    assert gaps(journal) == gap
    assert session["cpu_time_ns"] == 42
    assert session["measured_ns"] == 100 * SECOND_NS + measured
    assert session["memory_mib_seconds"] == measured // SECOND_NS * 1024


def test_a_gap_from_a_start_has_its_own_kind() -> None:
    assert gaps(Journal().start(0).samples(sample(901, cpu=5))) == [(0, 901, "start", 5, 3)]
    # Between two samples it is a step, though the earlier be a session's start.
    assert gaps(Journal().samples(sample(0), sample(901, cpu=5))) == [(0, 901, "step", 5, 2)]
    assert gaps(Journal().start(0).samples(sample(0), sample(901, cpu=5))) == [(0, 901, "step", 5, 3)]


def test_a_tail_is_measured_with_the_last_memory_or_is_a_gap_without_counters() -> None:
    measured = Journal().samples(sample(0, memory=GIB)).stop(900)
    assert measured.session()["memory_mib_seconds"] == 900 * 1024
    assert gaps(measured) == []
    long = Journal().samples(sample(0, memory=GIB)).stop(901)
    assert long.session()["memory_mib_seconds"] == 0
    assert gaps(long) == [(0, 901, "stop", 0, 3)]
    unsampled = Journal().start(0).stop(900).session()
    assert (unsampled["measured_ns"], unsampled["memory_mib_seconds"]) == (900 * SECOND_NS, 0)


def test_a_tail_taken_back_leaves_nothing_of_it() -> None:
    for end, rows in ((60, []), (901, [(0, 902, "step", 8)])):
        journal = Journal().samples(sample(0, memory=GIB)).stop(end).samples(sample(end + 1, cpu=8))
        plain = Journal().samples(sample(0, memory=GIB)).samples(sample(end + 1, cpu=8))
        session, same = journal.session(), plain.session()
        assert session == same
        assert [row[:4] for row in gaps(journal)] == [row[:4] for row in gaps(plain)] == rows


def test_a_tail_is_taken_back_as_it_was_billed_though_the_rules_have_changed() -> None:
    journal = Journal().samples(sample(0, memory=GIB)).stop(60).add(Rules(gap_threshold_ns=SECOND_NS))
    session = journal.samples(sample(90)).session()
    assert (session["measured_ns"], session["gap_ns"], session["memory_mib_seconds"]) == (0, 90 * SECOND_NS, 0)
    assert gaps(journal) == [(0, 90, "step", 0, 5)]


def test_a_point_takes_the_rules_of_the_link_that_it_is_put_into() -> None:
    journal = Journal().samples(sample(0, memory=GIB)).samples(sample(600))
    journal.add(Rules(gap_threshold_ns=SECOND_NS)).samples(sample(300)).stop(450)
    # By the rules of now all of it would be gaps; the stop is contradicted at once.
    assert gaps(journal) == []
    assert journal.session()["measured_ns"] == 600 * SECOND_NS
    journal.samples(sample(602)).samples(sample(601))
    # The newest link is of the new rules, and both of its halves are.
    assert gaps(journal) == []
    assert journal.samples(sample(604)).samples(sample(-2)).session()["gap_ns"] == 2 * SECOND_NS
    # Before the first instant the rules are the first one's.
    assert second(journal.session()["start_ns"]) == -2


# An implicit session that becomes explicit


@pytest.mark.parametrize(
    ("start", "measured", "gap"),
    [
        (-100, 100 * SECOND_NS, []),
        (0, 0, []),
        (-901, 0, [(-901, 0, "start", 77, 3)]),
    ],
)
def test_a_start_found_later_bills_what_the_baseline_would_have(start: int, measured: int, gap: list[Row]) -> None:
    journal = Journal().samples(sample(0, cpu=77, memory=GIB)).start(start)
    session = journal.session()
    assert (session["explicit"], second(session["start_ns"])) == (1, start)
    assert (session["cpu_time_ns"], session["measured_ns"], session["memory_mib_seconds"]) == (77, measured, 0)
    assert gaps(journal) == gap


def test_a_start_found_later_bills_under_the_caps() -> None:
    journal = Journal(CAPPED).samples(sample(0, cpu=22 * SECOND_NS + 1)).start(-10)
    assert journal.session()["cpu_time_ns"] == 0
    amounts = '{"amounts":[22000000001,0,0,0,0],"step_ns":10000000000}'
    assert journal.anomalies() == [(3, 0, "implausible", 1, 0, amounts)]


@pytest.mark.parametrize(
    ("baseline", "found", "later"),
    [
        pytest.param(130, 30, 10, id="the counter went on from the last owner's 100"),
        # With the start known, 60 is counted from zero and there is no mark: as if the start had come in time.
        pytest.param(60, 60, 80, id="the counter fell"),
    ],
)
def test_a_start_found_later_bills_as_if_it_had_come_in_time(baseline: int, found: int, later: int) -> None:
    journal = Journal().samples(sample(0, cpu=100)).stop(1)
    journal.samples(sample(10, cpu=baseline), customer="globex").start(5, "globex")
    assert journal.session()["cpu_time_ns"] == found
    journal.samples(sample(20, cpu=140), customer="globex")
    assert journal.session()["cpu_time_ns"] == found + later
    assert journal.anomalies() == []
