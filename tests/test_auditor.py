"""The auditor against numbers worked out by hand: sessions, starts, stops, owners and what is only kept.

Each case is a row of docs/billing-semantics.md. Steps and buckets are in tests/auditor.
Seconds count from an hour in 2027; the rules are event 1, so a journal's first event is sequence 2;
the gap threshold is 900 s.
"""

from __future__ import annotations

import pytest
from auditor.events import Batch, Heartbeat, PossibleGap
from auditor.journal import VM, Journal, at, sample

A, B = "acme", "globex"
NOTHING = "[0,0,0,0,0,0]"


def life(row: dict[str, object]) -> tuple[object, ...]:
    """(ordinal, explicit, start, last, end, end kind) of a session, in nanoseconds."""
    names = ("ordinal", "explicit", "start_ns", "last_ns", "end_ns", "end_kind")
    return tuple(row[name] for name in names)


def expected(ordinal: int, explicit: int, start: float, last: float, end: float | None = None, kind: str = "stop"):
    return (ordinal, explicit, at(start), at(last), None if end is None else at(end), None if end is None else kind)


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
            "late",
            [(3, 0, "late", 1, 10, '{"values":[0,5,0,0,0,0]}')],
            (1, 0, 10, 20),
            id="before the newest, even where it was seen before",
        ),
        pytest.param(RUNNING, sample(25, cpu=9), "samples", [], (1, 0, 10, 25), id="after the newest"),
        pytest.param(WITHOUT_SAMPLES, sample(10, cpu=1), "samples", [], (1, 1, 10, 10), id="at the start"),
        pytest.param(WITHOUT_SAMPLES, sample(40, cpu=1), "samples", [], (1, 1, 10, 40), id="after the start"),
        pytest.param(
            WITHOUT_SAMPLES,
            sample(9, cpu=1),
            "late",
            [(3, 0, "late", 1, 9, '{"values":[0,1,0,0,0,0]}')],
            (1, 1, 10, 10),
            id="before the start",
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
            [(4, 0, "contradicted_stop", 1, 51, '{"stop_ns":1800000050000000000}')],
            (1, 0, 10, 51),
            id="after the stop",
        ),
        pytest.param(
            ENDED,
            sample(50),
            "late",
            [(4, 0, "late", 1, 50, '{"values":' + NOTHING + "}")],
            (1, 0, 10, 20, 50),
            id="at the stop",
        ),
        pytest.param(
            ENDED,
            sample(30),
            "late",
            [(4, 0, "late", 1, 30, '{"values":' + NOTHING + "}")],
            (1, 0, 10, 20, 50),
            id="between the newest and the stop",
        ),
    ],
)
def test_a_sample_goes_by_the_newest_session(before, late, tally, anomalies, after) -> None:
    journal = Journal()
    journal.events = list(before)
    counted = journal.tallies().get(tally, 0)
    journal.samples(late)
    assert journal.anomalies() == anomalies
    assert life(journal.session()) == expected(*after)
    assert journal.tallies()[tally] == counted + 1


def test_the_item_is_the_place_in_the_sorted_batch() -> None:
    journal = Journal().samples(sample(30)).samples(sample(40), sample(10), sample(20))
    assert [(item, kind) for _, item, kind, *_ in journal.anomalies()] == [(0, "late"), (1, "late")]


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
def test_a_start_goes_by_the_newest_session(before, start, owner, anomalies, after) -> None:
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
def test_a_stop_goes_by_the_newest_session(before, stop, anomalies, after, measured_seconds) -> None:
    journal = Journal()
    journal.events = list(before)
    journal.stop(stop)
    assert journal.anomalies() == anomalies
    assert life(journal.session()) == expected(*after)
    assert journal.session()["measured_ns"] == measured_seconds * 10**9


def test_the_same_stop_twice_is_counted() -> None:
    assert Journal().start(10).stop(20).stop(20).tallies() == {"starts": 1, "stops": 2, "duplicate_stops": 1}


# The rest


def test_an_instance_keeps_its_last_beat() -> None:
    journal = Journal()
    journal.add(Heartbeat("host-2", ())).add(Heartbeat("host-1", ("b",))).add(Heartbeat("host-1", ("c", "a", "c")))
    assert journal.bill().dump()["instances"] == [("host-1", at(4), '["a","c"]'), ("host-2", at(2), "[]")]
    assert journal.tallies() == {"heartbeats": 3}


def test_a_reported_gap_is_kept_by_sequence_and_moves_nothing() -> None:
    journal = Journal().samples(sample(10)).add(PossibleGap(VM, at(5), at(8))).add(PossibleGap(VM, at(5), at(8)))
    assert journal.bill().dump()["reported_gaps"] == [(3, VM, at(5), at(8)), (4, VM, at(5), at(8))]
    assert journal.tallies() == {"samples": 1, "possible_gaps": 2}
    assert life(journal.session()) == expected(1, 0, 10, 10)


def test_an_empty_batch_moves_nothing() -> None:
    """The doors answer it themselves; should one be journaled, it bills nobody."""
    assert Journal().add(Batch(VM, A, ())).sessions() == []
