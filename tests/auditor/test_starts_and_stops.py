"""Starts and stops by hand: each cell of the document's first table, in order and late.

Seconds count from an hour in 2027; the rules are event 1, so a journal's first event is sequence 2.
"""

from __future__ import annotations

import pytest

from auditor.journal import GIB, Journal, Life, at, expected, life, sample


def lives(journal: Journal) -> list[Life]:
    return [life(row) for row in journal.sessions()]


def ended_at(second_: float) -> str:
    return f'{{"end_ns":{1_800_000_000 + second_:.0f}000000000}}'


def sampled_at(second_: float) -> str:
    return f'{{"sample_ns":{1_800_000_000 + second_:.0f}000000000}}'


# Phase none


def test_a_start_opens_an_explicit_session() -> None:
    assert lives(Journal().start(5)) == [expected(1, 1, 5, 5)]


def test_a_stop_of_an_unknown_vm_is_recorded_and_opens_nothing() -> None:
    journal = Journal().stop(10)
    assert journal.anomalies() == [(2, 0, "unknown_stop", 0, 10, "{}")]
    assert journal.sessions() == []
    assert journal.tallies() == {"stops": 1}


def test_a_stop_that_came_before_its_start_ends_it() -> None:
    journal = Journal().stop(10).start(3)
    assert lives(journal) == [expected(1, 1, 3, 3, 10)]
    # It stays on record that nobody knew what it stopped.
    assert [row[2] for row in journal.anomalies()] == ["unknown_stop"]


# Phase running


def test_a_start_while_running_is_a_missed_stop_without_a_tail() -> None:
    journal = Journal().samples(sample(10), sample(20)).start(300)
    assert lives(journal) == [expected(1, 0, 10, 20, 20, "missed_stop"), expected(2, 1, 300, 300)]
    assert [row["measured_ns"] for row in journal.sessions()] == [10 * 10**9, 0]
    assert journal.anomalies() == [(3, 0, "missed_stop", 1, 300, ended_at(20))]
    journal = Journal().start(10).start(11)
    assert lives(journal) == [expected(1, 1, 10, 10, 10, "missed_stop"), expected(2, 1, 11, 11)]


def test_a_stop_that_was_missed_comes_after_all() -> None:
    journal = Journal().samples(sample(10, memory=GIB)).samples(sample(20, memory=GIB)).start(300).stop(25)
    assert lives(journal) == [expected(1, 0, 10, 20, 25), expected(2, 1, 300, 300)]
    assert [row["memory_mib_seconds"] for row in journal.sessions()] == [15 * 1024, 0]
    assert journal.anomalies() == [(4, 0, "missed_stop", 1, 300, ended_at(20))]


@pytest.mark.parametrize("stop", [20, 25])
def test_a_stop_ends_a_running_session_with_a_tail(stop: int) -> None:
    journal = Journal().samples(sample(10), sample(20)).stop(stop)
    assert lives(journal) == [expected(1, 0, 10, 20, stop)]
    assert journal.session()["measured_ns"] == (stop - 10) * 10**9
    assert lives(Journal().start(10).stop(stop)) == [expected(1, 1, 10, 10, stop)]


def test_the_same_start_and_the_same_stop_are_counted() -> None:
    journal = Journal().start(10).start(10).stop(20).stop(20).start(10)
    assert journal.tallies() == {"starts": 3, "duplicate_starts": 2, "stops": 2, "duplicate_stops": 1}
    # The newest session's start is known even where its instant is kept no more.
    journal = Journal().start(0).samples(*(sample(when) for when in range(60, 1200, 60))).start(0)
    assert journal.tallies()["duplicate_starts"] == 1


# Phase ended


def test_a_start_after_a_stop_opens_the_next_session() -> None:
    assert lives(Journal().start(10).stop(20).start(21)) == [expected(1, 1, 10, 10, 20), expected(2, 1, 21, 21)]


def test_a_start_before_a_stop_ends_there_too() -> None:
    journal = Journal().samples(sample(10)).stop(50).start(49)
    assert lives(journal) == [expected(1, 0, 10, 10, 10, "missed_stop"), expected(2, 1, 49, 49, 50)]
    assert journal.anomalies() == [(4, 0, "missed_stop", 1, 49, ended_at(10))]


def test_the_earliest_of_several_stops_is_the_end() -> None:
    for journal, sequence, at_second in (
        (Journal().samples(sample(10)).stop(30).stop(50), 4, 50),
        # What was the end is found to be one stop too many.
        (Journal().samples(sample(10)).stop(50).stop(30), 4, 50),
    ):
        assert lives(journal) == [expected(1, 0, 10, 10, 30)]
        assert journal.session()["measured_ns"] == 20 * 10**9
        assert journal.anomalies() == [(sequence, 0, "extra_stop", 1, at_second, ended_at(30))]


def test_a_sample_contradicts_a_stop_in_either_order() -> None:
    for journal in (
        Journal().samples(sample(10)).stop(50).samples(sample(60, cpu=7)),
        Journal().samples(sample(10)).samples(sample(60, cpu=7)).stop(50),
    ):
        assert lives(journal) == [expected(1, 0, 10, 60)]
        assert (journal.session()["cpu_time_ns"], journal.session()["measured_ns"]) == (7, 50 * 10**9)
        assert journal.anomalies() == [(4, 0, "contradicted_stop", 1, 50, sampled_at(60))]


def test_a_contradicted_stop_without_samples_goes_on_with_the_first_step() -> None:
    journal = Journal().start(10).stop(20).samples(sample(30, cpu=77))
    assert lives(journal) == [expected(1, 1, 10, 30)]
    assert (journal.session()["cpu_time_ns"], journal.session()["measured_ns"]) == (77, 20 * 10**9)


def test_a_start_between_explains_what_contradicted_the_stop() -> None:
    journal = Journal().samples(sample(10, cpu=5)).stop(50).samples(sample(60, cpu=2)).start(55)
    assert lives(journal) == [expected(1, 0, 10, 10, 50), expected(2, 1, 55, 60)]
    assert [row["cpu_time_ns"] for row in journal.sessions()] == [0, 2]
    assert [row[2] for row in journal.anomalies()] == ["contradicted_stop", "counter_reset"]


# Several points of one time


def test_a_sample_counts_between_the_start_and_the_stop_of_its_time() -> None:
    for journal in (
        Journal().start(10).stop(10).samples(sample(10, cpu=9)),
        Journal().samples(sample(10, cpu=9)).stop(10).start(10),
        Journal().stop(10).samples(sample(10, cpu=9)).start(10),
    ):
        assert lives(journal) == [expected(1, 1, 10, 10, 10)]
        assert journal.session()["cpu_time_ns"] == 9


def test_a_stop_and_a_start_of_one_time_end_the_old_session_and_open_the_new_one() -> None:
    for journal in (
        Journal().start(0).samples(sample(10)).stop(20).start(20).samples(sample(20, cpu=3)),
        Journal().start(0).samples(sample(10)).start(20).samples(sample(20, cpu=3)).stop(20),
        Journal().start(0).samples(sample(10)).samples(sample(20, cpu=3)).stop(20).start(20),
    ):
        assert lives(journal) == [expected(1, 1, 0, 10, 20), expected(2, 1, 20, 20)]
        assert [row["cpu_time_ns"] for row in journal.sessions()] == [0, 3]


def test_with_an_earlier_stop_the_stop_of_that_time_is_the_new_sessions() -> None:
    journal = Journal().start(0).stop(20).start(20).stop(15)
    assert lives(journal) == [expected(1, 1, 0, 0, 15), expected(2, 1, 20, 20, 20)]


# Starts that are found later, and numbers


@pytest.mark.parametrize("start", [3, 10])
def test_a_start_found_later_makes_the_session_explicit(start: int) -> None:
    journal = Journal().samples(sample(10, cpu=5)).samples(sample(20, cpu=6)).start(start)
    assert lives(journal) == [expected(1, 1, start, 20)]
    assert journal.session()["cpu_time_ns"] == 6
    assert journal.anomalies() == []


def test_an_earlier_sample_makes_an_earlier_implicit_session_of_the_same_number() -> None:
    journal = Journal().samples(sample(10, cpu=5)).samples(sample(20, cpu=6)).samples(sample(3, cpu=4))
    assert lives(journal) == [expected(1, 0, 3, 20)]
    assert journal.session()["cpu_time_ns"] == 2
    assert journal.tallies() == {"samples": 3, "backfilled": 1}


def test_a_start_before_other_starts_has_the_next_number() -> None:
    journal = Journal().start(10).stop(20).start(3)
    assert lives(journal) == [expected(1, 1, 10, 10, 20), expected(2, 1, 3, 3, 3, "missed_stop")]
    assert journal.anomalies() == [(4, 0, "missed_stop", 2, 10, ended_at(3))]


def test_a_sample_before_the_first_start_opens_a_session_of_the_next_number() -> None:
    journal = Journal().start(10).samples(sample(3)).samples(sample(1)).start(0)
    assert lives(journal) == [expected(1, 1, 10, 10), expected(2, 1, 0, 3, 3, "missed_stop")]
    ends = [(row[0], row[5]) for row in journal.anomalies()]
    # The same end from the first earlier sample on: recorded once.
    assert ends == [(3, ended_at(3))]


def test_what_shows_again_with_other_values_is_not_recorded_again() -> None:
    journal = Journal().samples(sample(0)).start(100).samples(sample(40)).samples(sample(20))
    assert journal.sessions()[0]["end_ns"] == at(40)
    assert journal.anomalies() == [(3, 0, "missed_stop", 1, 100, ended_at(0))]


def test_what_is_explained_stays_on_record() -> None:
    journal = Journal().samples(sample(0, cpu=9)).samples(sample(60, cpu=3)).start(30).samples(sample(20, cpu=9))
    assert [row["cpu_time_ns"] for row in journal.sessions()] == [0, 3]
    assert [(row[0], row[2]) for row in journal.anomalies()] == [(3, "counter_reset"), (4, "missed_stop")]


# What does not fit


def test_a_record_that_brings_a_total_beyond_64_bits_is_a_dead_letter_and_bills_nothing() -> None:
    most = 2**63 - 1
    journal = Journal().start(-1_700_000_000).samples(sample(0, disk=most)).samples(sample(1, disk=0))
    before = journal.sessions()
    journal.samples(sample(2, disk=0), sample(3, disk=1))
    assert journal.sessions() == before
    assert journal.bill().dump()["dead_letters"] == [(5, "metrics", "overflow")]
    journal.samples(sample(4, disk=0))
    assert journal.session()["samples"] == 3
    # A new session begins at 0 and has room again.
    journal.start(5).samples(sample(6, disk=1))
    assert journal.session()["disk_read_bytes"] == 1


def test_a_start_that_brings_a_total_beyond_64_bits_is_a_dead_letter() -> None:
    journal = Journal().samples(sample(0, disk=2**63 - 1)).samples(sample(1, disk=0), sample(2, disk=1))
    before = journal.sessions()
    assert journal.start(-1_700_000_000).sessions() == before
    assert journal.bill().dump()["dead_letters"] == [(4, "started", "overflow")]
    assert journal.tallies()["starts"] == 1
