"""Buckets by hand: how a step is spread, when a bucket closes, and what a correction is."""

from __future__ import annotations

from auditor.buckets import BucketClock, Part, parts_of, share
from auditor.events import MINUTE_NS, SECOND_NS, Rules, Tick
from auditor.journal import GIB, Journal, sample, second

MINUTELY = Rules(bucket_ns=MINUTE_NS)


def facts(journal: Journal) -> list[tuple[object, ...]]:
    """(bucket's second, its length in s, CPU ns, MiB-seconds, measured s, samples, peak)"""
    return [_quantities(row) for row in journal.bill().rows("facts")]


def corrections(journal: Journal) -> list[tuple[object, ...]]:
    """(sequence, and as a fact)"""
    return [(row["sequence"], *_quantities(row)) for row in journal.bill().rows("corrections")]


def _quantities(row: dict[str, int]) -> tuple[object, ...]:
    return (
        second(row["bucket_start_ns"]),
        row["bucket_ns"] // SECOND_NS,
        row["cpu_time_ns"],
        row["memory_mib_seconds"],
        row["measured_ns"] / SECOND_NS,
        row["samples"],
        row["memory_peak_bytes"],
    )


def test_a_step_lies_in_parts_that_meet_at_the_edges() -> None:
    assert parts_of(5, 25, 10) == [Part(0, 5, 10), Part(10, 10, 20), Part(20, 20, 25)]
    assert parts_of(10, 20, 10) == [Part(10, 10, 20)]
    assert parts_of(20, 20, 10) == [Part(20, 20, 20)]


def test_shares_are_differences_of_floors_and_sum_to_the_whole() -> None:
    # cum(5) = 0, cum(10) = floor(7 * 5 / 20) = 1, cum(20) = floor(7 * 15 / 20) = 5, cum(25) = 7
    assert [share(7, 5, 25, part) for part in parts_of(5, 25, 10)] == [1, 4, 2]
    assert [share(2**62, 0, 3, part) for part in parts_of(0, 3, 2)] == [2**63 // 3, 2**62 - 2**63 // 3]
    assert share(7, 20, 20, Part(20, 20, 20)) == 7


def test_a_step_is_spread_and_its_samples_count_where_they_are() -> None:
    journal = Journal(MINUTELY).samples(sample(50, memory=GIB), sample(130, cpu=7, memory=2 * GIB))
    # 80 s: cum(60) = floor(7 * 10 / 80) = 0, cum(120) = floor(7 * 70 / 80) = 6.
    assert facts(journal) == [
        (0, 60, 0, 10 * 1024, 10, 1, GIB),
        (60, 60, 6, 60 * 1024, 60, 0, 0),
        (120, 60, 1, 10 * 1024, 10, 1, 2 * GIB),
    ]


def test_a_sample_on_an_edge_belongs_to_the_later_bucket() -> None:
    journal = Journal(MINUTELY).samples(sample(0), sample(60, cpu=5, memory=3))
    assert facts(journal) == [(0, 60, 5, 0, 60, 1, 0), (60, 60, 0, 0, 0, 1, 3)]


def test_a_step_of_no_length_goes_to_its_own_bucket() -> None:
    journal = Journal(MINUTELY).start(60).samples(sample(60, cpu=5))
    assert facts(journal) == [(60, 60, 5, 0, 0, 1, 0)]


def test_a_step_of_no_length_that_bills_nothing_makes_no_row() -> None:
    assert facts(Journal(MINUTELY).start(60).stop(60)) == []
    # The start is found after the buckets became longer: it takes the rules of the sample's instant.
    assert facts(Journal(MINUTELY).samples(sample(60)).add(Rules()).start(60)) == [(60, 60, 0, 0, 0, 1, 0)]
    assert facts(Journal(MINUTELY).samples(sample(60, cpu=5)).add(Rules()).start(60)) == [(60, 60, 5, 0, 0, 1, 0)]


def test_a_gap_keeps_its_counters_out_of_the_facts_but_not_its_sample() -> None:
    journal = Journal().samples(sample(0), sample(3700, cpu=9, memory=4))
    assert facts(journal) == [(0, 3600, 0, 0, 0, 1, 0), (3600, 3600, 0, 0, 0, 1, 4)]


def test_a_bucket_closes_ten_minutes_of_ticks_after_it_was_seen_ended() -> None:
    clock = BucketClock()
    hour = 3600 * SECOND_NS
    clock.tick(Tick(hour - 1, 60 * MINUTE_NS, True), hour)
    assert clock.waited_ns == {0: 0}
    clock.tick(Tick(hour, 4 * MINUTE_NS, True), hour)
    # The tick that saw it does not count for it.
    assert clock.waited_ns == {0: 4 * MINUTE_NS, hour: 0}
    clock.tick(Tick(hour + 1, 10 * MINUTE_NS - 1, True), hour)
    assert (clock.is_closed(-hour, hour), clock.is_closed(0, hour)) == (True, False)
    clock.tick(Tick(hour + 2, 1, True), hour)
    assert (clock.is_closed(0, hour), clock.is_closed(hour, hour)) == (True, False)
    assert clock.is_closed(hour - MINUTE_NS, MINUTE_NS)
    assert clock.waited_ns == {}


def test_a_clock_that_steps_back_notes_no_edge_twice() -> None:
    clock = BucketClock()
    for time_ns in (50, 45, 51):
        clock.tick(Tick(time_ns, 10, True), 10)
    # At 45 the edge at 50 was not ended after all; it waits anew.
    assert clock.waited_ns == {40: 10, 50: 0}
    clock = BucketClock()
    for time_ns in (50, 55, 51):
        clock.tick(Tick(time_ns, 1, True), 10)
    assert clock.waited_ns == {50: 2}


def test_a_clock_that_steps_ahead_closes_nothing_before_ten_minutes_of_ticks() -> None:
    journal = Journal().samples(sample(0)).tick(86_400, 60).tick(86_460, 599).samples(sample(10, cpu=3))
    assert corrections(journal) == []


def test_one_tick_from_the_future_closes_no_bucket_for_ever() -> None:
    journal = Journal(MINUTELY).samples(sample(0)).tick(10, 60).tick(8_640_000, 60).tick(70, 60).tick(130, 60)
    for minute in range(3, 20):
        journal.tick(10 + 60 * minute, 60)
    journal.samples(sample(1_120, cpu=3))
    # Ten minutes of ticks have closed what ended in the first ten minutes, and nothing later.
    assert {row[1] for row in corrections(journal)} <= set(range(0, 600, 60))
    assert max(row[0] for row in facts(journal)) == 1_080


def test_a_clock_that_stays_ahead_goes_on_as_fast_as_ticks_pass() -> None:
    clock = BucketClock()
    clock.tick(Tick(100, 1, True), 10)
    for _ in range(30):
        clock.tick(Tick(9_000, 1, True), 10)
    assert clock.now_ns == 130


def test_samples_tell_how_much_time_has_passed_without_ticks() -> None:
    """After a week without the daemon the first tick is not believed; a sample of that week is."""
    clock = BucketClock()
    clock.tick(Tick(100, 1, True), 10)
    clock.tick(Tick(9_000, 1, True), 10)
    assert clock.now_ns == 101
    clock.sampled(8_995)
    clock.sampled(4_000)
    clock.tick(Tick(9_001, 0, True), 10)
    assert (clock.now_ns, clock.waited_ns) == (8_995, {100: 1, 8_990: 0})


def test_a_sample_that_is_ahead_moves_nothing_past_the_tick() -> None:
    clock = BucketClock()
    clock.tick(Tick(100, 1, True), 10)
    clock.sampled(9_000)
    clock.tick(Tick(125, 1, True), 10)
    assert clock.now_ns == 125


def closed_hour() -> Journal:
    """GiB of memory at 0 s, a stop at 100 s, and the hour is closed."""
    return Journal().samples(sample(0, memory=GIB)).stop(100).tick(3600, 60).tick(4200, 600)


def test_what_comes_to_a_closed_bucket_is_a_correction_beside_the_fact() -> None:
    before = facts(closed_hour())
    journal = closed_hour().samples(sample(3599, memory=2 * GIB), sample(3601, cpu=8, memory=GIB))
    assert before == [(0, 3600, 0, 100 * 1024, 100, 1, GIB)]
    assert facts(journal) == [*before, (3600, 3600, 4, 2 * 1024, 1, 1, GIB)]
    # The tail of 100 s is taken back, 0 to 3599 is a gap, and the next step's first second lies here.
    assert corrections(journal) == [(6, 0, 3600, 4, -100 * 1024 + 2 * 1024, -99, 1, 2 * GIB)]
    assert causes(journal) == ["step"]


def causes(journal: Journal) -> list[str]:
    return [row["cause"] for row in journal.bill().rows("corrections")]


def test_each_sequence_has_its_own_correction_and_cause() -> None:
    journal = closed_hour().stop(90).stop(50)
    assert corrections(journal) == [
        (6, 0, 3600, 0, -10 * 1024, -10, 0, 0),
        (7, 0, 3600, 0, -40 * 1024, -40, 0, 0),
    ]
    assert causes(journal) == ["stop", "stop"]
    assert journal.session()["measured_ns"] == 50 * SECOND_NS
    # 10 s of no memory instead of the GiB's.
    journal.samples(sample(20), sample(30, memory=GIB)).start(40)
    assert [row[0] for row in corrections(journal)] == [6, 7, 8, 9, 9]
    assert corrections(journal)[2] == (8, 0, 3600, 0, -10 * 1024, 0, 2, GIB)
    # The new session has the last 10 s, without a memory.
    first, second_ = [row for row in journal.bill().rows("corrections") if row["sequence"] == 9], journal.sessions()[1]
    assert [(row["ordinal"], row["measured_ns"] // SECOND_NS) for row in first] == [(1, -20), (2, 10)]
    assert (second(second_["start_ns"]), second_["measured_ns"]) == (40, 10 * SECOND_NS)
    assert causes(journal)[2:] == ["backfill", "start", "start"]


def test_a_record_that_does_several_things_says_all_of_them() -> None:
    journal = Journal().samples(sample(0), sample(100)).tick(3600, 60).tick(4200, 600)
    journal.samples(sample(50, cpu=3), sample(200, cpu=9))
    assert corrections(journal) == [(5, 0, 3600, 9, 0, 100, 2, 0)]
    assert causes(journal) == ["backfill+step"]


def test_a_sample_that_moves_to_another_session_takes_its_count_along_and_leaves_its_peak() -> None:
    journal = Journal().samples(sample(0)).samples(sample(100, memory=GIB)).tick(3600, 60).tick(4200, 600)
    journal.start(60)
    assert corrections(journal) == [(6, 0, 3600, 0, 0, -100, -1, 0), (6, 0, 3600, 0, 0, 40, 1, GIB)]
    assert [(row["samples"], row["memory_peak_bytes"]) for row in journal.sessions()] == [(1, GIB), (1, GIB)]


def test_the_peak_of_a_difference_is_of_what_counts_now_and_did_not() -> None:
    journal = Journal().samples(sample(0, memory=GIB)).samples(sample(100, memory=GIB)).tick(3600, 60).tick(4200, 600)
    journal.samples(sample(50, memory=7))
    assert [row[6:] for row in corrections(journal)] == [(1, 7)]


def test_a_difference_that_is_nothing_makes_no_row() -> None:
    journal = Journal().start(0).samples(sample(100)).stop(300).tick(3600, 60).tick(4200, 600)
    # Contradicted at once: nothing is billed otherwise.
    assert corrections(journal.stop(50)) == []
    # The first minute of the tail is where it was; only the bucket with the new end changes.
    journal = Journal(MINUTELY).start(0).stop(100).tick(120, 60).tick(720, 600).stop(90)
    assert corrections(journal) == [(6, 60, 60, 0, 0, -10, 0, 0)]


def test_a_fact_taken_back_stays_as_a_row_of_zeros() -> None:
    journal = Journal(MINUTELY).start(0).stop(100).stop(30)
    assert facts(journal) == [(0, 60, 0, 0, 30, 0, 0), (60, 60, 0, 0, 0, 0, 0)]


def test_rules_are_in_force_from_their_record_on() -> None:
    journal = Journal(MINUTELY).samples(sample(0), sample(30, cpu=1)).add(Rules()).samples(sample(90, cpu=3))
    assert sorted(facts(journal)) == [(0, 60, 1, 0, 30, 2, 0), (0, 3600, 2, 0, 60, 1, 0)]
