"""Where a point may be put, by hand: open links and closed ones, what is kept, and whose timeline it is."""

from __future__ import annotations

import pytest

from auditor.biller import Biller
from auditor.events import SECOND_NS, Batch, Event, Rules, Sample, What
from auditor.journal import VM, Journal, expected, life, sample
from auditor.timeline import KEPT_COUNT

A, B = "acme", "globex"


def minutes(first: int, last: int, **values: int) -> list[Sample]:
    """A sample each minute, both ends included."""
    return [sample(60 * minute, **values) for minute in range(first, last + 1)]


def kinds(journal: Journal) -> list[object]:
    return [row[2] for row in journal.anomalies()]


def test_the_newest_link_is_open_and_those_between_plain_samples_are_closed() -> None:
    journal = Journal().samples(*minutes(0, 5)).samples(sample(290)).samples(sample(230))
    # The newest link was 240 to 300, before the first of the two came.
    assert journal.anomalies() == [(4, 0, "late", 1, 230, '{"values":[0,0,0,0,0,0]}')]
    assert journal.tallies() == {"samples": 7, "backfilled": 1, "late": 1}


def test_a_link_that_was_split_stays_open() -> None:
    journal = Journal().samples(*minutes(0, 5)).samples(sample(270)).samples(*minutes(6, 9))
    assert kinds(journal.samples(sample(250)).samples(sample(299)).samples(sample(301))) == ["late"]


@pytest.mark.parametrize(
    ("later", "cpu"),
    [
        pytest.param(60, 0, id="plain"),
        pytest.param(901, 0, id="a gap"),
        pytest.param(60, -1, id="a decrease"),
        pytest.param(60, 10**18, id="implausible"),
    ],
)
def test_a_link_is_open_for_good_by_what_its_step_was(later: int, cpu: int) -> None:
    journal = Journal().samples(*minutes(0, 2, cpu=100)).samples(sample(120 + later, cpu=100 + cpu))
    journal.samples(*(sample(when, cpu=100 + cpu) for when in range(180 + later, 400 + later, 60)))
    journal.samples(sample(121, cpu=100))
    assert kinds(journal).count("late") == (later == 60 and cpu == 0)


def test_a_link_that_passed_a_mark_is_open_for_good() -> None:
    values = [100, 101, 50, 60, 102, 103, 104, 105]
    rows = [sample(60 * number, cpu=cpu) for number, cpu in enumerate(values)]
    journal = Journal().samples(*rows).samples(sample(61, cpu=101)).samples(sample(121, cpu=50))
    # 120 to 180 is as plain as what lies before the decrease and after the mark.
    assert [second for *_, second, _ in journal.anomalies()] == [120, 121]
    assert journal.session()["cpu_time_ns"] == 1 + 10 + 1 + 3
    # From 60 to 99, and then from the mark on as before.
    assert journal.samples(sample(181, cpu=99)).session()["cpu_time_ns"] == 15 + 39
    assert journal.tallies()["backfilled"] == 2


@pytest.mark.parametrize("sort", ["start", "stop"])
def test_links_at_starts_and_stops_are_open_for_good(sort: str) -> None:
    journal = Journal().samples(*minutes(0, 3))
    journal = journal.start(200) if sort == "start" else journal.stop(200)
    journal.samples(*minutes(4, 19))
    for when in (181, 201):
        journal.samples(sample(when))
    assert journal.tallies()["backfilled"] == 2
    assert "late" in kinds(journal.samples(sample(1021)))


@pytest.mark.parametrize("gap", [True, False])
def test_eight_links_after_a_gap_are_open(gap: bool) -> None:
    """A stopped clock, a dead network: what was held up comes after what came first."""
    first = 20 if gap else 4
    journal = Journal().samples(*minutes(0, 3))
    if not gap:
        journal.stop(200)
    journal.samples(*minutes(first, first + 12))
    # The 8 after the sample that closed the gap; the newest link is open anyway.
    for minute in (first + 7, first + 8, first + 11):
        journal.samples(sample(60 * minute + 30))
    assert [second for *_, kind, _, second, _ in journal.anomalies() if kind == "late"] == [60 * (first + 8) + 30]


def test_a_start_ends_the_count_of_links_after_a_gap() -> None:
    journal = (
        Journal()
        .samples(sample(0))
        .samples(sample(1000))
        .start(1001)
        .samples(*(sample(1001 + n) for n in (1, 2, 3, 4)))
    )
    journal.samples(sample(1002.5))
    assert kinds(journal) == ["missed_stop", "late"]


def test_what_would_change_a_closed_link_is_not_put() -> None:
    journal = Journal().samples(sample(0)).samples(*minutes(20, 40)).start(600)
    # All that came after the gap would be the new session's.
    assert journal.anomalies() == [(4, 0, "late_start", 1, 600, '{"customer_id":"acme"}')]
    assert life(journal.session()) == expected(1, 0, 0, 2400)
    # A sample there is fine, unless it brings a mark that a closed link would pass.
    rows = [sample(60 * minute, cpu=minute * 100) for minute in range(20, 41)]
    journal = Journal().samples(sample(0)).samples(*rows).samples(sample(600, cpu=1000))
    assert (journal.session()["cpu_time_ns"], kinds(journal)) == (4000, [])
    assert kinds(journal.samples(sample(700, cpu=3500))) == ["late"]
    assert kinds(journal.samples(sample(700, cpu=4001))) == ["late", "counter_reset"]
    assert journal.session()["cpu_time_ns"] == 4001 + 2000


def test_a_mark_that_comes_late_is_passed_where_it_would_have_been() -> None:
    rows = [sample(60 * minute, cpu=minute) for minute in range(20, 40)]
    journal = Journal().samples(sample(0)).samples(*rows).samples(sample(600, cpu=70)).samples(sample(2400, cpu=100))
    in_order = Journal().samples(sample(0), sample(600, cpu=70), *rows, sample(2400, cpu=100))
    assert journal.session() == in_order.session()
    assert journal.session()["cpu_time_ns"] == 70 + 19 + 30


def test_a_stop_where_the_samples_go_on_over_closed_links_is_recorded_and_no_more() -> None:
    journal = Journal().samples(*minutes(0, 5)).stop(0).stop(120).stop(-1)
    assert kinds(journal) == ["contradicted_stop", "contradicted_stop", "unknown_stop"]
    assert journal.anomalies()[0][5] == '{"sample_ns":1800000300000000000}'
    assert life(journal.session()) == expected(1, 0, 0, 300)
    assert kinds(Journal().start(0).samples(*minutes(1, 9)).stop(540).start(700).stop(121)) == ["late_stop"]


def test_a_stop_beside_the_last_sample_is_put_though_the_link_before_it_is_closed() -> None:
    journal = Journal().samples(*minutes(0, 5)).start(1000).stop(300)
    assert [life(row) for row in journal.sessions()] == [expected(1, 0, 0, 300, 300), expected(2, 1, 1000, 1000)]
    # A start would take the sample from its session; as a closed link's it stays there.
    assert kinds(journal.start(300)) == ["missed_stop", "late_start"]


@pytest.mark.parametrize(
    ("again", "tally", "found"),
    [
        (sample(300, cpu=1), "duplicates", []),
        (sample(300, cpu=2), "conflicts", ["conflict"]),
        (sample(60, cpu=1), "late", ["late"]),
    ],
)
def test_a_sample_at_a_kept_instant_is_the_same_or_in_conflict(again: Sample, tally: str, found: list[str]) -> None:
    journal = Journal().samples(*minutes(0, 5, cpu=1)).stop(300).start(400).samples(again)
    assert (journal.tallies()[tally], kinds(journal)) == (1, found)
    assert [row["samples"] for row in journal.sessions()] == [6, 0]


def test_what_is_older_than_35_days_of_the_folds_time_is_not_kept() -> None:
    for days, found in ((35, []), (35 + 1 / 86_400, ["late"])):
        journal = Journal().samples(sample(0)).samples(sample(86_400)).samples(sample(86_460)).samples(sample(86_520))
        journal.add(_elsewhere(days * 86_400)).tick(days * 86_400, 60)
        # A tick of before does not bring it back.
        journal.tick(0, 60)
        assert kinds(journal.samples(sample(-5))) == found
    # The newest two are kept always, and the link between them is open.
    journal = Journal().samples(sample(0)).samples(sample(60)).add(_elsewhere(99 * 86_400)).tick(99 * 86_400, 60)
    assert kinds(journal.samples(sample(30)).samples(sample(-1))) == ["late"]


def test_a_tick_makes_nothing_old_that_no_sample_is_newer_than() -> None:
    """Nothing bounds the first tick's time: a clock wrong at the very first start would forget all that comes."""
    journal = Journal().tick(400 * 86_400, 0).start(0).samples(sample(300)).tick(360, 60)
    journal.samples(*(sample(seconds) for seconds in (3_900, 4_200, 4_500))).tick(4_560, 60)
    assert kinds(journal.samples(sample(900))) == []
    assert (journal.session()["measured_ns"], journal.session()["gap_ns"]) == (1_500 * SECOND_NS, 3_000 * SECOND_NS)


def _elsewhere(seconds: float) -> Batch:
    """Another VM is sampled."""
    return Batch("vm-other", "acme", [sample(seconds)])


def fold(events: list[What]) -> Biller:
    biller = Biller()
    for sequence, what in enumerate(events, start=1):
        biller.fold(Event(sequence, sequence, "", what))
    return biller


def test_the_newest_4096_are_kept() -> None:
    """Each step is a gap, so each link is open for good."""
    for count, tally in ((KEPT_COUNT, "backfilled"), (KEPT_COUNT + 1, "late")):
        rows = [sample(2 * number) for number in range(count)]
        biller = fold([Rules(gap_threshold_ns=SECOND_NS), Batch(VM, A, rows), Batch(VM, A, [sample(1)])])
        expected_late = {"backfilled": 0, "late": 1} if tally == "late" else {"backfilled": 1, "late": 0}
        assert {name: biller.books.tallies[name] for name in expected_late} == expected_late
        biller.fold(Event(9, 9, "", Batch(VM, A, [sample(2 * count - 3)])))
        assert biller.books.tallies["backfilled"] == expected_late["backfilled"] + 1


# Customers


def test_a_batch_of_another_owner_is_a_dead_letter_while_the_session_runs() -> None:
    journal = Journal().samples(sample(10)).samples(sample(20, cpu=9), customer=B).start(20, B)
    assert journal.bill().dump()["dead_letters"] == [(3, "metrics", "wrong_owner"), (4, "started", "wrong_owner")]
    assert journal.tallies() == {"samples": 1, "dead_letters": 2, "starts": 1}
    assert life(journal.session()) == expected(1, 0, 10, 10)


@pytest.mark.parametrize(("earliest", "placed"), [(60, True), (61, True), (59, False), (50, False)])
def test_another_owner_begins_a_timeline_after_the_end_and_after_the_newest_instant(
    earliest: int, placed: bool
) -> None:
    # The second stop is one too many, but the timeline goes as far.
    journal = Journal().samples(sample(10, cpu=100)).stop(50).stop(60)
    journal.samples(sample(70, cpu=130), sample(earliest, cpu=120), customer=B)
    if not placed:
        assert journal.bill().dump()["dead_letters"] == [(5, "metrics", "wrong_owner")]
        assert kinds(journal.start(earliest, B)) == ["extra_stop", "late_start"]
        return
    first, second = journal.sessions()
    assert (first["customer_id"], second["customer_id"]) == (A, B)
    assert life(second) == expected(2, 0, earliest, 70)
    # The baseline bills nothing, whatever the last owner's counters were.
    assert second["cpu_time_ns"] == 10


def test_nothing_of_the_new_owner_lies_before_the_end_of_the_old_one() -> None:
    journal = Journal().samples(sample(10)).stop(50).samples(sample(60), customer=B)
    assert kinds(journal.start(49, B)) == ["late_start"]
    assert kinds(journal.samples(sample(49.5), customer=B)) == ["late_start", "late"]
    assert kinds(journal.stop(49)) == ["late_start", "late", "late_stop"]
    assert life(journal.start(50, B).session()) == expected(2, 1, 50, 60)
    # Nor does the old one's timeline change any more: what comes for it is the new owner's, or nobody's.
    journal.samples(sample(40))
    assert journal.tallies()["dead_letters"] == 1


def test_stops_alone_are_nobodys() -> None:
    journal = Journal().stop(10).samples(sample(5), customer=B)
    assert [(row["customer_id"], life(row)) for row in journal.sessions()] == [(B, expected(1, 0, 5, 5, 10))]
