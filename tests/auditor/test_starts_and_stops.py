"""Starts and stops by hand: each row of the rules page, from the state before it to the state after it.

Seconds count from an hour in 2027; the rules are event 1, so a journal's first event is sequence 2.
"""

from __future__ import annotations

import pytest

from auditor.events import Event, Sample
from auditor.journal import Journal, Life, expected, life, sample

A, B = "acme", "globex"
RUNNING = Journal().samples(sample(10, cpu=5), sample(20, cpu=8)).events
WITHOUT_SAMPLES = Journal().start(10).events
ENDED = Journal().samples(sample(10, cpu=5), sample(20, cpu=8)).stop(50).events

# Starts


@pytest.mark.parametrize(
    ("before", "start", "owner", "anomalies", "after"),
    [
        pytest.param(Journal(), 5, A, [], expected(1, 1, 5, 5), id="none"),
        pytest.param(
            Journal().samples(sample(10)).stop(50), 50, B, [], expected(2, 1, 50, 50), id="ended, another's, at the end"
        ),
        pytest.param(
            Journal().samples(sample(10)).stop(50),
            49,
            B,
            [(4, 0, "late_start", 1, 49, '{"customer_id":"globex"}')],
            expected(1, 0, 10, 10, 50),
            id="ended, another's, before the end",
        ),
        pytest.param(Journal().start(10), 10, A, [], expected(1, 1, 10, 10), id="explicit, the same"),
        pytest.param(
            Journal().start(10).samples(sample(12)).stop(50),
            10,
            A,
            [],
            expected(1, 1, 10, 12, 50),
            id="explicit and ended, the same",
        ),
        pytest.param(
            Journal().start(10).stop(10), 10, A, [], expected(1, 1, 10, 10, 10), id="the same, though it is the end"
        ),
        pytest.param(Journal().samples(sample(10)), 3, A, [], expected(1, 1, 3, 10), id="implicit, before it"),
        pytest.param(Journal().samples(sample(10)), 10, A, [], expected(1, 1, 10, 10), id="implicit, at it"),
        pytest.param(
            Journal().samples(sample(10)).stop(50).samples(sample(60), customer=B),
            50,
            B,
            [],
            expected(2, 1, 50, 60),
            id="implicit, at the end of the session before it",
        ),
        pytest.param(
            Journal().samples(sample(10)).stop(50).samples(sample(60), customer=B),
            49,
            B,
            [(5, 0, "late_start", 2, 49, '{"customer_id":"globex"}')],
            expected(2, 0, 60, 60),
            id="implicit, before the end of the session before it",
        ),
        pytest.param(
            Journal().samples(sample(10)).stop(50),
            3,
            A,
            [],
            expected(1, 1, 3, 10, 50),
            id="implicit and ended, before it",
        ),
        pytest.param(
            Journal().samples(sample(10)),
            11,
            A,
            [(3, 0, "missed_stop", 1, 11, '{"end_ns":1800000010000000000}')],
            expected(2, 1, 11, 11),
            id="running, after the newest",
        ),
        pytest.param(
            Journal().start(10),
            11,
            A,
            [(3, 0, "missed_stop", 1, 11, '{"end_ns":1800000010000000000}')],
            expected(2, 1, 11, 11),
            id="running without samples, after the start",
        ),
        pytest.param(
            Journal().samples(sample(10), sample(20)),
            20,
            A,
            [(3, 0, "late_start", 1, 20, '{"customer_id":"acme"}')],
            expected(1, 0, 10, 20),
            id="running, at the newest",
        ),
        pytest.param(
            Journal().start(10),
            9,
            A,
            [(3, 0, "late_start", 1, 9, '{"customer_id":"acme"}')],
            expected(1, 1, 10, 10),
            id="explicit, before it",
        ),
        pytest.param(Journal().samples(sample(10)).stop(50), 50, A, [], expected(2, 1, 50, 50), id="ended, at the end"),
        pytest.param(
            Journal().samples(sample(10)).stop(50),
            49,
            A,
            [(4, 0, "late_start", 1, 49, '{"customer_id":"acme"}')],
            expected(1, 0, 10, 10, 50),
            id="ended, before the end",
        ),
    ],
)
def test_a_start_goes_by_the_newest_session(
    before: Journal, start: float, owner: str, anomalies: list[tuple[object, ...]], after: Life
) -> None:
    journal = Journal()
    journal.events = list(before.events)
    journal.start(start, owner)
    assert journal.anomalies() == anomalies
    assert life(journal.session()) == after


def test_a_start_of_another_owner_is_a_dead_letter_while_the_session_runs() -> None:
    journal = Journal().start(10).start(20, B)
    assert journal.bill().dump()["dead_letters"] == [(3, "started", "wrong_owner")]
    assert journal.tallies() == {"starts": 2, "dead_letters": 1}


def test_the_same_start_twice_is_counted() -> None:
    assert Journal().start(10).start(10).tallies() == {"starts": 2, "duplicate_starts": 1}


def test_a_missed_stop_ends_at_the_newest_sample_without_a_tail() -> None:
    old, new = Journal().samples(sample(10), sample(20)).start(300).sessions()
    assert life(old) == expected(1, 0, 10, 20, 20, "missed_stop")
    assert (old["measured_ns"], old["gap_ns"]) == (10 * 10**9, 0)
    assert life(new) == expected(2, 1, 300, 300)


# Stops


def test_a_stop_of_an_unknown_vm_is_recorded_and_opens_nothing() -> None:
    journal = Journal().stop(10)
    assert journal.anomalies() == [(2, 0, "unknown_stop", 0, 10, "{}")]
    assert journal.sessions() == []
    assert journal.tallies() == {"stops": 1}


@pytest.mark.parametrize(
    ("before", "stop", "anomalies", "after", "measured_seconds"),
    [
        pytest.param(ENDED, 9, [(4, 0, "late_stop", 1, 9, "{}")], (1, 0, 10, 20, 50), 40, id="before the start"),
        pytest.param(
            ENDED,
            19,
            [(4, 0, "contradicted_stop", 1, 19, '{"last_ns":1800000020000000000}')],
            (1, 0, 10, 20, 50),
            40,
            id="before the newest, ended",
        ),
        pytest.param(
            RUNNING,
            10,
            [(3, 0, "contradicted_stop", 1, 10, '{"last_ns":1800000020000000000}')],
            (1, 0, 10, 20),
            10,
            id="before the newest, running",
        ),
        pytest.param(RUNNING, 20, [], (1, 0, 10, 20, 20), 10, id="at the newest"),
        pytest.param(RUNNING, 25, [], (1, 0, 10, 20, 25), 15, id="after the newest"),
        pytest.param(WITHOUT_SAMPLES, 10, [], (1, 1, 10, 10, 10), 0, id="at the start, no samples"),
        pytest.param(WITHOUT_SAMPLES, 15, [], (1, 1, 10, 10, 15), 5, id="after the start, no samples"),
        pytest.param(ENDED, 50, [], (1, 0, 10, 20, 50), 40, id="the same"),
        pytest.param(
            ENDED,
            51,
            [(4, 0, "extra_stop", 1, 51, '{"end_ns":1800000050000000000}')],
            (1, 0, 10, 20, 50),
            40,
            id="a later one",
        ),
        pytest.param(
            ENDED,
            30,
            [(4, 0, "earlier_stop", 1, 30, '{"end_ns":1800000050000000000}')],
            (1, 0, 10, 20, 30),
            20,
            id="an earlier one",
        ),
    ],
)
def test_a_stop_goes_by_the_newest_session(
    before: list[Event],
    stop: float,
    anomalies: list[tuple[object, ...]],
    after: tuple[int, int, float, float],
    measured_seconds: int,
) -> None:
    journal = Journal()
    journal.events = list(before)
    journal.stop(stop)
    assert journal.anomalies() == anomalies
    assert life(journal.session()) == expected(*after)
    assert journal.session()["measured_ns"] == measured_seconds * 10**9


def test_the_same_stop_twice_is_counted() -> None:
    assert Journal().start(10).stop(20).stop(20).tallies() == {"starts": 1, "stops": 2, "duplicate_stops": 1}


# The same sample again


@pytest.mark.parametrize(
    ("again", "duplicates", "samples"),
    [
        pytest.param(sample(120, cpu=31, memory=7), 1, [1, 1], id="the same"),
        pytest.param(sample(120, cpu=0, memory=7), None, [1, 2], id="another: the new life's own"),
    ],
)
def test_a_sample_sent_again_counts_once_though_a_session_began_at_its_instant(
    again: Sample, duplicates: int | None, samples: list[int]
) -> None:
    first = sample(120, cpu=31, memory=7)
    journal = Journal().start(0).samples(first).stop(120).start(120).samples(again).samples(sample(180, cpu=32))
    assert journal.tallies().get("duplicates") == duplicates
    assert [row["samples"] for row in journal.sessions()] == samples
    assert journal.anomalies() == []


def test_a_sample_sent_again_is_known_through_sessions_without_samples() -> None:
    """Sessions of no length at one instant; in each, running and ended, the old sample comes again."""
    old = sample(120, cpu=31)
    journal = Journal().start(0).samples(old).stop(120).start(120).samples(old).stop(120).samples(old)
    journal.start(120, customer=B).samples(old, customer=B)
    assert journal.tallies()["duplicates"] == 3
    assert [row["samples"] for row in journal.sessions()] == [1, 0, 0]


def test_a_sample_from_before_a_start_is_late_as_ever() -> None:
    journal = Journal().start(0).samples(sample(120, cpu=31)).stop(120).start(121).samples(sample(120, cpu=31))
    assert [row[2] for row in journal.anomalies()] == ["late"]


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
