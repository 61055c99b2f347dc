"""The auditor against numbers worked out by hand: samples, owners and what is only kept.

Each case is a row of docs/billing-semantics.md. Starts, stops, steps and buckets are in tests/auditor.
Seconds count from an hour in 2027; the rules are event 1, so a journal's first event is sequence 2.
"""

from __future__ import annotations

import pytest
from auditor.events import SECOND_NS, Batch, Event, Heartbeat, PossibleGap, Rules, Sample
from auditor.journal import VM, Journal, at, expected, life, sample

A, B = "acme", "globex"
NOTHING = "[0,0,0,0,0,0]"


# Samples


def test_an_unknown_vm_opens_an_implicit_session_at_its_first_sample_which_bills_nothing() -> None:
    session = Journal().samples(sample(10, cpu=500, memory=7)).session()
    assert life(session) == expected(1, 0, 10, 10)
    assert (session["cpu_time_ns"], session["measured_ns"], session["samples"]) == (0, 0, 1)
    assert session["memory_peak_bytes"] == 7


def test_the_first_of_an_unsorted_batch_is_the_earliest() -> None:
    session = Journal().samples(sample(30, cpu=900), sample(10, cpu=500), sample(20, cpu=600)).session()
    assert life(session) == expected(1, 0, 10, 30)
    assert session["cpu_time_ns"] == 400


RUNNING = Journal().samples(sample(10, cpu=5), sample(20, cpu=8)).events
WITHOUT_SAMPLES = Journal().start(10).events
# A gap up to 80, then 13 steps of a second: the links of the first 8 stay open, and the newest.
AFTER_A_GAP = [sample(80 + n, cpu=1_000 + n) for n in range(14)]
LONG = Journal(Rules(gap_threshold_ns=15 * SECOND_NS)).samples(sample(10, cpu=0), *AFTER_A_GAP).events
ENDED = Journal().samples(sample(10, cpu=5), sample(20, cpu=8)).stop(50).events


@pytest.mark.parametrize(
    ("before", "late", "tally", "anomalies", "after"),
    [
        pytest.param(RUNNING, sample(20, cpu=8), "duplicates", [], (1, 0, 10, 20), id="same time and values"),
        pytest.param(
            RUNNING,
            sample(20, cpu=9),
            "conflicts",
            [(3, 0, "conflict", 1, 20, '{"values":[0,9,0,0,0,0]}')],
            (1, 0, 10, 20),
            id="same time, other values",
        ),
        pytest.param(
            RUNNING,
            sample(10, cpu=5),
            "duplicates",
            [],
            (1, 0, 10, 20),
            id="the one before the newest again",
        ),
        pytest.param(RUNNING, sample(25, cpu=9), "samples", [], (1, 0, 10, 25), id="after the newest"),
        pytest.param(WITHOUT_SAMPLES, sample(10, cpu=1), "samples", [], (1, 1, 10, 10), id="at the start"),
        pytest.param(WITHOUT_SAMPLES, sample(40, cpu=1), "samples", [], (1, 1, 10, 40), id="after the start"),
        pytest.param(
            WITHOUT_SAMPLES,
            sample(9, cpu=1),
            "backfilled",
            [(3, 0, "missed_stop", 2, 10, '{"end_ns":1800000009000000000}')],
            (2, 0, 9, 9, 9, "missed_stop"),
            id="before the start",
        ),
        pytest.param(RUNNING, sample(15, cpu=6), "backfilled", [], (1, 0, 10, 20), id="into the newest step"),
        pytest.param(RUNNING, sample(5, cpu=4), "backfilled", [], (1, 0, 5, 20), id="before the first"),
        pytest.param(
            LONG,
            sample(15, cpu=1),
            "backfilled",
            [],
            (1, 0, 10, 93),
            id="into a gap",
        ),
        pytest.param(
            LONG, sample(87.5, cpu=1_007), "backfilled", [], (1, 0, 10, 93), id="into the eighth step after a gap"
        ),
        pytest.param(
            LONG,
            sample(88.5, cpu=1_008),
            "late",
            [(3, 0, "late", 1, 88.5, '{"values":[0,1008,0,0,0,0]}')],
            (1, 0, 10, 93),
            id="into the ninth",
        ),
        pytest.param(
            LONG,
            sample(83.5, cpu=1_009),
            "late",
            [(3, 0, "late", 1, 83.5, '{"values":[0,1009,0,0,0,0]}')],
            (1, 0, 10, 93),
            id="where its mark would be passed in a closed step",
        ),
        pytest.param(
            ENDED, sample(20, cpu=8), "duplicates", [], (1, 0, 10, 20, 50), id="the newest again, after a stop"
        ),
        pytest.param(
            ENDED,
            sample(20),
            "conflicts",
            [(4, 0, "conflict", 1, 20, '{"values":' + NOTHING + "}")],
            (1, 0, 10, 20, 50),
            id="a conflict after a stop",
        ),
        pytest.param(
            ENDED,
            sample(51, cpu=9),
            "samples",
            [(4, 0, "contradicted_stop", 1, 50, '{"sample_ns":1800000051000000000}')],
            (1, 0, 10, 51),
            id="after the stop",
        ),
        pytest.param(
            ENDED,
            sample(50, cpu=9),
            "backfilled",
            [],
            (1, 0, 10, 50, 50),
            id="at the stop",
        ),
        pytest.param(
            ENDED,
            sample(30, cpu=9),
            "backfilled",
            [],
            (1, 0, 10, 30, 50),
            id="between the newest and the stop",
        ),
    ],
)
def test_a_sample_goes_by_the_newest_session(
    before: list[Event],
    late: Sample,
    tally: str,
    anomalies: list[tuple[object, ...]],
    after: tuple[object, ...],
) -> None:
    journal = Journal()
    journal.events = list(before)
    counted = journal.tallies().get(tally, 0)
    journal.samples(late)
    assert journal.anomalies() == anomalies
    assert life(journal.session()) == expected(*after)  # type: ignore[arg-type]
    assert journal.tallies()[tally] == counted + 1


def test_the_item_is_the_place_in_the_sorted_batch() -> None:
    journal = Journal().samples(sample(10), sample(20)).samples(sample(40), sample(20, cpu=1), sample(10, cpu=1))
    assert [(item, kind) for _, item, kind, *_ in journal.anomalies()] == [(0, "conflict"), (1, "conflict")]


def test_equal_times_keep_their_order_in_the_batch() -> None:
    journal = Journal().samples(sample(30, cpu=1), sample(30, cpu=2))
    assert journal.anomalies() == [(2, 1, "conflict", 1, 30, '{"values":[0,2,0,0,0,0]}')]


def test_a_contradicted_stop_without_samples_goes_on_with_the_first_step() -> None:
    session = Journal().start(10).stop(20).samples(sample(30, cpu=77)).session()
    assert life(session) == expected(1, 1, 10, 30)
    assert (session["cpu_time_ns"], session["measured_ns"]) == (77, 20 * 10**9)


# Owners


def test_a_batch_of_another_owner_is_a_dead_letter_while_the_session_runs() -> None:
    journal = Journal().samples(sample(10)).samples(sample(20, cpu=9), customer=B)
    assert journal.bill().dump()["dead_letters"] == [(3, "metrics", "wrong_owner")]
    assert journal.tallies() == {"samples": 1, "dead_letters": 1}
    assert life(journal.session()) == expected(1, 0, 10, 10)


@pytest.mark.parametrize(("earliest", "placed"), [(50, True), (51, True), (49, False)])
def test_a_batch_of_another_owner_opens_a_session_where_it_all_lies_after_the_end(earliest: int, placed: bool) -> None:
    journal = Journal().samples(sample(10, cpu=100)).stop(50)
    journal.samples(sample(60, cpu=130), sample(earliest, cpu=120), customer=B)
    if not placed:
        assert journal.bill().dump()["dead_letters"] == [(4, "metrics", "wrong_owner")]
        assert len(journal.sessions()) == 1
        return
    first, second = journal.sessions()
    assert (first["customer_id"], second["customer_id"]) == (A, B)
    assert life(second) == expected(2, 0, earliest, 60)
    # The baseline bills nothing, whatever the last owner's counters were.
    assert second["cpu_time_ns"] == 10


# The rest


def test_an_instance_keeps_its_last_beat() -> None:
    journal = Journal()
    journal.add(Heartbeat("host-2", ())).add(Heartbeat("host-1", ("b",))).add(Heartbeat("host-1", ("c", "a", "c")))
    assert journal.bill().dump()["instances"] == [("host-1", at(4), '["a","c"]', 0, 0), ("host-2", at(2), "[]", 0, 0)]
    assert journal.tallies() == {"heartbeats": 3}


def test_a_reported_gap_is_kept_by_sequence_and_moves_nothing() -> None:
    journal = Journal().samples(sample(10)).add(PossibleGap(VM, at(5), at(8))).add(PossibleGap(VM, at(5), at(8)))
    assert journal.bill().dump()["reported_gaps"] == [(3, VM, at(5), at(8)), (4, VM, at(5), at(8))]
    assert journal.tallies() == {"samples": 1, "possible_gaps": 2}
    assert life(journal.session()) == expected(1, 0, 10, 10)


def test_an_empty_batch_moves_nothing() -> None:
    """The doors answer it themselves; should one be journaled, it bills nobody."""
    assert Journal().add(Batch(VM, A, ())).sessions() == []
