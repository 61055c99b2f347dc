"""The columns' way and the one-at-a-time way give the same, however entries are grouped."""

from __future__ import annotations

import random
from array import array

import numpy as np
import pytest

from billaged.aggregator import computing
from billaged.aggregator.arithmetic import Int64, memory_time, proportion, segment_sums_memory
from billaged.aggregator.changes import Checkpoint
from billaged.aggregator.engine import Engine
from billaged.aggregator.feeding import feed
from billaged.ledger.database import open_for_writing
from billaged.ledger.dump import dump
from billaged.ledger.store import LedgerStore
from billaged.model.quantity import REST_PER_MIB_SECOND, MemoryTime, ScoreWeights, Usage, resource_score
from billaged.model.records import FoldRules, JournalEntry, Kind, MetricsBatch, Record, Tick, VmStarted, VmStopped
from billaged.model.time import DAY_NANOS, HOUR_NANOS, MINUTE_NANOS, NANOS

# A Friday at a full hour, UTC.
EPOCH = 500_000 * HOUR_NANOS
GIB = 2**30


def batch(vm_id: str, *samples: tuple[int, ...], customer: str = "acme") -> MetricsBatch:
    """Samples as (seconds after EPOCH, memory, cpu, read, write, rx, tx), missing values 0."""
    values = array("q")
    for sample in samples:
        padded = (*sample, *[0] * (7 - len(sample)))
        values.extend((EPOCH + padded[0] * NANOS, *padded[1:]))
    return MetricsBatch(vm_id, customer, values)


def entries_of(*records: Record) -> list[JournalEntry]:
    kinds = {MetricsBatch: Kind.METRICS, VmStarted: Kind.STARTED, VmStopped: Kind.STOPPED, Tick: Kind.TICK}
    kinds[FoldRules] = Kind.RULES
    return [
        JournalEntry(sequence, kinds[type(record)], EPOCH, "test", b"", record)
        for sequence, record in enumerate(records, 1)
    ]


def ledger_after(entries: list[JournalEntry], group: int | None = None) -> dict[str, list[tuple]]:
    """The canonical dump after folding in groups of this size (None: all at once), with a flush after each."""
    database = open_for_writing(None)
    store = LedgerStore(database, "journal")
    fold = Engine(store.checkpoint())
    size = group or max(1, len(entries))
    for start in range(0, len(entries), size):
        feed(fold, store, entries[start : start + size])
        if (changes := fold.collect()) is not None:
            store.commit(changes)
    result = dump(database)
    store.close()
    return result


def only_session(*records: Record) -> Usage:
    (row,) = ledger_after(entries_of(*records))["sessions"]
    return usage_of(row)


def usage_of(row: tuple) -> Usage:
    counters, mib, rest, measured, gap, samples, peak = row[8:13], *row[13:]
    return Usage(*counters, MemoryTime(mib, rest).byte_nanos, peak, measured, gap, samples)


def test_the_first_sample_of_an_unknown_vm_bills_nothing() -> None:
    assert only_session(batch("vm", (0, GIB, 10**12, 1, 2, 3, 4))) == Usage(memory_peak_bytes=GIB, samples=1)


def test_a_step_bills_differences_and_the_memory_at_its_beginning() -> None:
    usage = only_session(batch("vm", (0, GIB, 100, 10, 20, 30, 40)), batch("vm", (60, 2 * GIB, 5_100, 11, 22, 33, 44)))
    assert usage == Usage(5_000, 1, 2, 3, 4, GIB * 60 * NANOS, 2 * GIB, 60 * NANOS, 0, 2)


def test_after_a_start_the_whole_value_counts_and_memory_does_not() -> None:
    usage = only_session(VmStarted("vm", "acme", EPOCH), batch("vm", (60, GIB, 5_000, 1, 2, 3, 4)))
    assert usage == Usage(5_000, 1, 2, 3, 4, 0, GIB, 60 * NANOS, 0, 1)


def test_a_failed_read_bills_one() -> None:
    """1000, 0, 1001: the mark remembers what was billed before the decrease."""
    usage = only_session(batch("vm", (0, 0, 1_000)), batch("vm", (60, 0, 0)), batch("vm", (120, 0, 1_001)))
    assert usage.cpu_time_ns == 1


def test_a_step_over_the_threshold_is_a_gap_with_counters_and_without_memory() -> None:
    bill = ledger_after(entries_of(batch("vm", (0, GIB, 0, 0)), batch("vm", (3_600, GIB, 7 * NANOS, 70))))
    (gap,) = bill["gaps"]
    assert gap == ("vm", 1, EPOCH, EPOCH + HOUR_NANOS, "step", "acme", 7 * NANOS, 70, 0, 0, 0, 2)
    (session,) = bill["sessions"]
    assert session[13:17] == (0, 0, 0, HOUR_NANOS)


def test_a_step_of_exactly_the_threshold_is_measured() -> None:
    usage = only_session(batch("vm", (0, GIB)), batch("vm", (900, GIB)))
    assert (usage.measured_ns, usage.gap_ns) == (900 * NANOS, 0)


def test_a_step_is_spread_over_buckets_and_the_parts_sum_to_the_whole() -> None:
    bill = ledger_after(entries_of(batch("vm", (3_500, GIB, 0)), batch("vm", (3_700, GIB, 101))))
    first, second = bill["facts"]
    assert (first[5], second[5]) == (50, 51)
    assert (first[12], second[12]) == (100 * NANOS, 100 * NANOS)
    assert (first[13], second[13]) == (1, 1)


def test_a_stop_bills_its_tail_and_a_later_sample_takes_it_back() -> None:
    stopped = only_session(batch("vm", (0, GIB)), VmStopped("vm", EPOCH + MINUTE_NANOS))
    assert stopped == Usage(0, 0, 0, 0, 0, GIB * MINUTE_NANOS, GIB, MINUTE_NANOS, 0, 1)
    bill = ledger_after(
        entries_of(batch("vm", (0, GIB)), VmStopped("vm", EPOCH + MINUTE_NANOS), batch("vm", (90, GIB)))
    )
    (session,) = bill["sessions"]
    assert session[6:8] == (None, None)
    assert session[15] == 90 * NANOS
    assert [row[2] for row in bill["anomalies"]] == ["contradicted_stop"]


def test_a_wrong_clock_at_the_very_first_start_closes_no_gap_for_good() -> None:
    entries = entries_of(
        Tick(EPOCH + 400 * DAY_NANOS, 0, False),
        VmStarted("vm", "acme", EPOCH),
        batch("vm", (300, GIB)),
        Tick(EPOCH + 6 * MINUTE_NANOS, MINUTE_NANOS, False),
        *(batch("vm", (seconds, GIB)) for seconds in (3_900, 4_200, 4_500)),
        Tick(EPOCH + 76 * MINUTE_NANOS, MINUTE_NANOS, False),
        batch("vm", (900, GIB)),
    )
    for group in (1, None):
        ledger = ledger_after(entries, group)
        assert ledger["anomalies"] == []
        assert ledger["sessions"][0][15:17] == (25 * MINUTE_NANOS, 50 * MINUTE_NANOS)


def test_what_changes_a_closed_bucket_is_a_correction() -> None:
    ticks = [Tick(EPOCH + HOUR_NANOS + n * MINUTE_NANOS, MINUTE_NANOS, False) for n in range(11)]
    rules = FoldRules(gap_threshold_ns=HOUR_NANOS * 2)
    bill = ledger_after(entries_of(rules, batch("vm", (0, GIB, 0)), *ticks, batch("vm", (3_660, GIB, 61))))
    assert [(row[0], row[5], row[12], row[13]) for row in bill["facts"]] == [
        (EPOCH, 0, 0, 1),
        (EPOCH + HOUR_NANOS, 1, MINUTE_NANOS, 1),
    ]
    assert [(row[0], row[1], row[6], row[13]) for row in bill["corrections"]] == [(14, EPOCH, 60, HOUR_NANOS)]


def test_an_entry_that_cannot_be_folded_is_a_dead_letter_and_the_rest_is_billed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = MetricsBatch("bad", "acme", array("q", [EPOCH, 1, 2]))
    entries = entries_of(batch("vm", (0, 0, 0)), broken, batch("vm", (60, 0, 9)))
    bill = ledger_after(entries)
    assert bill["dead_letters"] == [(2, "metrics", "fold_failed")]
    assert [row[8] for row in bill["sessions"]] == [9]
    assert "cannot be folded" in caplog.text


MOST = 2**63 - 1
# A start in 1973: a counter may have risen to anything since.
LONG_AGO = VmStarted("vm", "acme", 10**17)


def test_a_total_beyond_64_bits_is_a_dead_letter_however_it_is_grouped(caplog: pytest.LogCaptureFixture) -> None:
    """The session that overflows ends in the same group: nobody looks at its total any more."""
    records = (
        LONG_AGO,
        batch("vm", (0, 1, 0, MOST), (1, 1, 0, 0), (2, 1, 0, 1)),
        VmStarted("vm", "acme", EPOCH + 9 * NANOS),
        batch("other", (0, GIB)),
        batch("vm", (10, 1, 0, 5)),
        VmStopped("vm", EPOCH + 20 * NANOS),
    )
    bill = ledger_after(entries_of(*records))
    assert bill == ledger_after(entries_of(*records), 1)
    assert bill["dead_letters"] == [(2, "metrics", "overflow")]
    # Nothing of its batch is left: neither samples nor the reset that it recorded.
    assert [(row[0], row[1], row[9]) for row in bill["sessions"]] == [("other", 1, 0), ("vm", 1, 0), ("vm", 2, 5)]
    assert [row[2] for row in bill["anomalies"]] == ["missed_stop"]
    assert caplog.text == ""


def test_the_columns_never_add_beyond_64_bits() -> None:
    """Each step is within the caps and each sum is checked, also of many steps in one batch."""
    rules = FoldRules(gap_threshold_ns=8 * HOUR_NANOS, max_gigabytes_per_second=10_000)
    eight_hours = 8 * 3_600
    rising = [(2 + eight_hours * n, 1, 0, min(2**57 * n, MOST)) for n in range(1, 66)]
    records = (
        rules,
        LONG_AGO,
        batch("vm", (0, 1, 0, 2**62)),
        batch("vm", (1, 1, 0, 0)),
        batch("vm", *rising),
        *(batch("vm", sample) for sample in rising),
    )
    bill = ledger_after(entries_of(*records))
    assert bill == ledger_after(entries_of(*records), 1)
    assert bill["dead_letters"][0] == (5, "metrics", "overflow")
    (session,) = bill["sessions"]
    assert 2**62 < session[9] <= MOST
    assert len(bill["dead_letters"]) > 1, "what fits of the single samples is billed, the rest is not"


def test_samples_are_counted_beyond_32_bits() -> None:
    fold = Engine(Checkpoint())
    fold.fold(entries_of(batch("vm", (0, 1))))
    fold.columns.samples[0] = 2**31 - 1
    fold.fold(entries_of(batch("vm", (1, 1)), batch("vm", (2, 1))))
    assert fold.columns.samples[0] == 2**31 + 1


def test_one_vm_that_overflows_does_not_hold_up_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others of the group still go through the columns, all at once."""
    fold = Engine(Checkpoint())
    fleet = [batch(f"vm-{n}", (0, 1)) for n in range(500)]
    fold.fold(entries_of(LONG_AGO, batch("vm", (0, 1, *[MOST] * 5), (1, 1)), *fleet))
    folded_alone: list[str] = []
    load = computing.load_vm
    monkeypatch.setattr(computing, "load_vm", lambda columns, vm_id: folded_alone.append(vm_id) or load(columns, vm_id))
    fold.fold(entries_of(*(batch(f"vm-{n}", (60, 1)) for n in range(500)), batch("vm", (60, 1, *[5] * 5))))
    assert folded_alone == ["vm"]
    assert fold.dead_letters_seen == 1
    assert fold.columns.samples[fold.columns.row_of["vm-7"]] == 2


def test_a_broken_entry_is_found_without_folding_the_others_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    fold = Engine(Checkpoint())
    fold.fold(entries_of(*(batch(f"vm-{n}", (0, 1)) for n in range(256))))
    broken = MetricsBatch("bad", "acme", array("q", [EPOCH, 1, 2]))
    records = [batch(f"vm-{n}", (60, 1)) for n in range(256)]
    records.insert(100, broken)
    computed: list[int] = []
    compute = fold._compute
    fold._compute = lambda entries, *rest, **more: computed.append(len(entries)) or compute(entries, *rest, **more)  # type: ignore[assignment,func-returns-value]
    fold.fold(entries_of(*records))
    assert len(computed) < 25
    assert fold.dead_letters_seen == 1
    assert (fold.columns.samples[:256] == 2).all()
    assert caplog.text.count("cannot be folded") == 1


def test_dead_letters_count_as_waiting_rows_of_their_size() -> None:
    fold = Engine(Checkpoint())
    fold.fold([entries_of(batch("vm", (0, 1)))[0]])
    before = fold.waiting_rows()
    (entry,) = entries_of(batch("vm", (1, 1), customer="globex"))
    fold.fold([entry._replace(payload=bytes(2**20))])
    assert fold.waiting_rows() - before > 1_000


def test_a_wrong_tick_puts_no_bucket_out_of_reach() -> None:
    """The clock is 100 days ahead for one tick; a day later facts are facts."""
    ticks = [Tick(EPOCH + n * MINUTE_NANOS, MINUTE_NANOS, False) for n in range(1_440)]
    ticks[5] = ticks[5]._replace(time_ns=EPOCH + 2_400 * HOUR_NANOS)
    day = 86_400
    bill = ledger_after(entries_of(batch("vm", (0, GIB)), *ticks, batch("vm", (day, GIB), (day + 60, GIB))))
    assert [row[0] for row in bill["facts"]] == [EPOCH, EPOCH + 24 * HOUR_NANOS]
    assert bill["corrections"] == []


def hostile_fleet(seed: int) -> list[JournalEntry]:
    """A small fleet whose samples mostly behave: both ways of folding are taken, often within one group."""
    chance = random.Random(seed)
    clocks = {f"vm-{n}": chance.randrange(4_000) for n in range(5)}
    counters = {vm: [chance.randrange(10**6) for _ in range(5)] for vm in clocks}
    records: list[Record] = [FoldRules(bucket_ns=chance.choice([MINUTE_NANOS, 10 * MINUTE_NANOS, HOUR_NANOS]))]
    for _ in range(120):
        vm = chance.choice(list(clocks))
        kind = chance.random()
        if kind < 0.06:
            records.append(VmStarted(vm, "acme", EPOCH + (clocks[vm] + chance.randrange(-50, 50)) * NANOS))
        elif kind < 0.12:
            records.append(VmStopped(vm, EPOCH + (clocks[vm] + chance.randrange(-50, 50)) * NANOS))
        elif kind < 0.2:
            wall = EPOCH + max(clocks.values()) * NANOS
            records.append(Tick(wall, chance.choice([0, MINUTE_NANOS, 10 * MINUTE_NANOS]), chance.random() < 0.5))
        else:
            samples = []
            for _ in range(chance.choice([1, 1, 1, 2, 5])):
                clocks[vm] += chance.choice([0, 1, 30, 60, 60, 60, 300, 1_000])
                for index in range(5):
                    counters[vm][index] += chance.randrange(1_000)
                if chance.random() < 0.05:
                    counters[vm][chance.randrange(5)] = chance.randrange(10)
                samples.append((clocks[vm], chance.randrange(2**40), *counters[vm]))
            chance.shuffle(samples)
            records.append(batch(vm, *samples))
    return entries_of(*records)


@pytest.mark.parametrize("seed", range(25))
def test_the_bill_does_not_depend_on_how_entries_are_grouped(seed: int) -> None:
    entries = hostile_fleet(seed)
    one_by_one = ledger_after(entries, 1)
    assert ledger_after(entries) == one_by_one
    assert ledger_after(entries, 7) == one_by_one


@pytest.mark.parametrize("seed", range(5, 15))
def test_sums_over_summaries_are_the_session(seed: int) -> None:
    """A summary is a difference between two ticks, so the windows of a session add up to it."""
    database = open_for_writing(None)
    store = LedgerStore(database, "journal")
    fold = Engine(store.checkpoint())
    windows: dict[str, Usage] = {}
    sessions: dict[str, Usage] = {}
    journal = hostile_fleet(seed)
    end = entries_of(Tick(EPOCH + 10**6 * NANOS, 0, True))
    for entry in [*journal, end[0]._replace(sequence=len(journal) + 1)]:
        for summaries in feed(fold, store, [entry]):
            for summary in summaries.rows():
                key = f"{summary.vm_id} session {summary.ordinal}"
                windows[key] = windows.get(key, Usage()) + summary.window
                sessions[key] = summary.session
    assert sessions
    for key, session in sessions.items():
        assert windows[key] == session, key
    # And what was summed up is what the ledger has in the end.
    changes = fold.collect()
    assert changes is not None
    store.commit(changes)
    for row in dump(database)["sessions"]:
        # A session that used nothing and lived no time has no summary.
        assert sessions.get(f"{row[0]} session {row[1]}", Usage()) == usage_of(row)
    store.close()


def test_a_thousand_stops_at_once_are_one_batch_of_final_summaries() -> None:
    """However they were received: a batch for each moment would take a second to make, and fill the queue."""
    fold = Engine(Checkpoint())
    entries = entries_of(*(batch(f"vm-{n}", (0, GIB)) for n in range(1_000)))
    fold.fold(entries)
    stops = entries_of(*(VmStopped(f"vm-{n}", EPOCH + MINUTE_NANOS) for n in range(1_000)))
    (summaries,) = fold.fold([stop._replace(received_ns=EPOCH + stop.sequence) for stop in stops]).summaries
    assert len(summaries) == 1_000
    assert summaries.final.all()
    assert summaries.window_end_ns == EPOCH + 1_000


def test_a_step_longer_than_its_window_scores_its_memory_no_higher_than_its_mean() -> None:
    """Samples every five minutes, summaries every one: 4 GiB are 4 GiB, not 20, and the peak is no lower."""
    fold = Engine(Checkpoint())
    tick = Tick(EPOCH + 240 * NANOS, MINUTE_NANOS, True)
    last = Tick(EPOCH + 300 * NANOS, MINUTE_NANOS, True)
    records = (batch("vm", (0, 4 * GIB)), tick, batch("vm", (300, GIB)), last)
    *_, summaries = fold.fold(entries_of(*records)).summaries
    (summary,) = summaries.rows()
    assert summary.window.measured_ns == 5 * MINUTE_NANOS
    assert resource_score(summary.window, MINUTE_NANOS, ScoreWeights()) == 2
    assert summary.window.memory_mean_bytes == summary.window.memory_peak_bytes == 4 * GIB


def test_the_example_of_the_semantics_page() -> None:
    usage = Usage(
        cpu_time_ns=60 * NANOS,
        disk_read_bytes=100 * 2**20,
        memory_byte_nanos=4 * GIB * 10 * MINUTE_NANOS,
        measured_ns=10 * MINUTE_NANOS,
        gap_ns=10 * MINUTE_NANOS,
    )
    assert resource_score(usage, 20 * MINUTE_NANOS, ScoreWeights()) == 91


def test_memory_time_is_exact_up_to_its_bounds() -> None:
    chance = np.random.default_rng(1)
    memory = chance.integers(0, 2**48, 2_000, endpoint=True)
    span = chance.integers(0, 9 * HOUR_NANOS, 2_000, endpoint=True)
    mib, rest = memory_time(memory, span)
    for got_mib, got_rest, bytes_, nanos in zip(
        mib.tolist(), rest.tolist(), memory.tolist(), span.tolist(), strict=True
    ):
        assert (got_mib, got_rest) == divmod(bytes_ * nanos, REST_PER_MIB_SECOND)


def test_proportion_is_the_floor_of_the_exact_quotient() -> None:
    chance = np.random.default_rng(2)
    amount = chance.integers(0, 2**63 - 1, 2_000)
    whole = chance.integers(1, 2**52, 2_000)
    part = (chance.random(2_000) * whole).astype(np.int64)
    part[:50], part[50:100] = 0, whole[50:100]
    # Long spans and short ones take different numbers of digits.
    short = slice(1_000, 2_000)
    for span in (slice(0, 1_000), short):
        check_proportion(amount[span], part[span], whole[span])
    check_proportion(amount[short], part[short] >> 12, (whole[short] >> 12) + 1)


def check_proportion(amount: Int64, part: Int64, whole: Int64) -> None:
    for got, d, x, t in zip(
        proportion(amount, part, whole).tolist(), amount.tolist(), part.tolist(), whole.tolist(), strict=True
    ):
        assert got == d * x // t


def test_sums_of_memory_do_not_overflow() -> None:
    rest = np.full(20_000, REST_PER_MIB_SECOND - 1, dtype=np.int64)
    mib = np.full(20_000, 3, dtype=np.int64)
    sums = segment_sums_memory(mib, rest, np.array([0, 15_000]))
    for index, count in enumerate((15_000, 5_000)):
        expected = divmod(count * (3 * REST_PER_MIB_SECOND + REST_PER_MIB_SECOND - 1), REST_PER_MIB_SECOND)
        assert (int(sums[0][index]), int(sums[1][index])) == expected
