"""The ledger equals the auditor's bill, row by row, whatever happens on the way.

Hostile journals go through the real engine and the real store in groups of any size, with
flushes, evictions and crashes anywhere; the auditor reads the same journal alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from auditor.bill import Bill
from auditor.biller import bill
from auditor.chooser import Chooser, SeededChooser
from auditor.convert import to_entries, to_events
from auditor.events import HOUR_NS, MINUTE_NS, SECOND_NS, Batch, Event, Rules, Sample, Started, Stopped, Tick, What
from auditor.generator import journals, seeded_journal
from auditor.machine import EPOCH_NS
from dense_journals import calm, crowded, with_closed_runs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from billaged.aggregator import computing
from billaged.aggregator.engine import Engine
from billaged.aggregator.feeding import feed, take_up
from billaged.aggregator.fold import Plan, plan
from billaged.intake.journal import JournalRow, entry_of
from billaged.ledger.database import open_for_writing
from billaged.ledger.dump import dump
from billaged.ledger.store import LedgerStore
from billaged.model.errors import SettingError
from billaged.model.records import JournalEntry
from billaged.settings import Settings

# The most that UNKEY_BILLAGED_GAP_THRESHOLD takes.
THRESHOLD_MAX_NS = 8 * HOUR_NS

Dump = dict[str, list[tuple]]


def within_settings(events: list[Event]) -> list[Event]:
    """The same journal with gap thresholds that can be set: memory x time of one measured step fits 64 bits then."""
    return [
        event._replace(what=event.what.with_thresholds_at_most(THRESHOLD_MAX_NS))
        if isinstance(event.what, Rules)
        else event
        for event in events
    ]


def decoded(events: list[Event]) -> list[JournalEntry]:
    """The entries as a replay reads them: from their payloads, not from what made them."""
    return [entry_of(JournalRow(entry.sequence, entry.kind, *entry[2:5])) for entry in to_entries(events)]


def taken_up(store: LedgerStore) -> Engine:
    """The engine of a daemon that starts on this ledger."""
    engine = Engine(store.checkpoint())
    take_up(engine, store)
    return engine


def flush(engine: Engine, store: LedgerStore) -> None:
    if (changes := engine.collect()) is not None:
        store.commit(changes)


def evict_ended(engine: Engine) -> None:
    """What the engine does beyond 10,000 ended sessions, done with the few there are. Right after a flush only."""
    columns = engine.columns
    rows = [row for row in columns.ended if columns.window_slot[row] < 0]
    engine.silence.rows_leaving(columns, rows)
    columns.evict(rows)


def ledger_of(events: list[Event], chance: Chooser) -> Dump:
    """The ledger after a life full of accidents: each restart loses what was not flushed, and reads it again."""
    entries = decoded(events)
    database = open_for_writing(None)
    store = LedgerStore(database, "journal")
    engine = taken_up(store)
    crashes_left = 8
    while engine.position < len(entries):
        at = engine.position
        group = entries[at : at + chance.pick((1, 2, 3, 7, 20, 100))]
        feed(engine, store, group)
        match chance.pick(("go on", "flush", "flush and evict", "flush and restart", "crash")):
            case "flush":
                flush(engine, store)
            case "flush and evict":
                flush(engine, store)
                evict_ended(engine)
            case "flush and restart":
                flush(engine, store)
                store = LedgerStore(database, "journal")
                engine = taken_up(store)
            case "crash" if crashes_left:
                crashes_left -= 1
                store = LedgerStore(database, "journal")
                engine = taken_up(store)
    flush(engine, store)
    result = dump(database)
    store.close()
    return result


def assert_billed_alike(events: list[Event], ledger: Dump) -> None:
    audited = bill(events)
    audited.check()
    assert audited.differences(ledger) == []
    # Row for row in the ledger's own order, too: the dump is canonical.
    assert ledger == audited.dump()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(events=journals(events_max=30), seed=st.integers(0, 2**32))
def test_the_ledger_is_the_auditors_bill(events: list[Event], seed: int) -> None:
    events = within_settings(events)
    assert_billed_alike(events, ledger_of(events, SeededChooser(seed)))


@pytest.mark.parametrize("seed", range(40))
def test_the_ledger_is_the_auditors_bill_over_long_journals(seed: int) -> None:
    events = within_settings(seeded_journal(seed, events=250))
    assert_billed_alike(events, ledger_of(events, SeededChooser(seed + 1_000_000)))


@pytest.mark.parametrize("seed", range(4))
def test_a_fleet_of_many_machines_folds_in_large_groups_as_one_by_one(seed: int) -> None:
    events = within_settings(seeded_journal(seed + 500, events=1_500, machines=60))
    assert_billed_alike(events, ledger_of(events, SeededChooser(seed)))


@pytest.mark.parametrize("journal", [crowded, with_closed_runs])
@pytest.mark.parametrize("first_seed", range(0, 60, 10))
def test_the_ledger_is_the_auditors_bill_where_nearly_everything_touches(
    journal: Callable[[int, int], list[Event]], first_seed: int
) -> None:
    for seed in range(first_seed, first_seed + 10):
        events = journal(seed, 80)
        ledger = ledger_of(events, SeededChooser(seed + 9))
        assert_billed_alike(events, ledger)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_folded_over_columns_is_the_auditors_bill(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hostile journals hardly ever are: this says that these ones are."""
    events = calm(seed, 400)
    over_columns = 0

    def counting(*arguments: Any) -> tuple[Plan | None, NDArray[Any]]:
        nonlocal over_columns
        planned, left = plan(*arguments)
        over_columns += 0 if planned is None else len(planned.steps.row)
        return planned, left

    monkeypatch.setattr(computing, "plan", counting)
    ledger = ledger_of(events, SeededChooser(seed))
    assert_billed_alike(events, ledger)
    samples = sum(len(event.what.samples) for event in events if isinstance(event.what, Batch))
    assert over_columns > samples / 3
    assert {row["customer_id"] for row in Bill(ledger).rows("gaps")} >= {"a", "c"}


def test_the_longest_measured_step_with_the_most_memory_is_exact() -> None:
    """The upper ends of the settings and of the door together, many times over: no product and no sum wraps."""
    memory = 2**48
    times = [EPOCH_NS + number * THRESHOLD_MAX_NS for number in range(6)]
    batches = [Batch("vm-1", "acme", [(time_ns, memory, 0, 0, 0, 0, 0)]) for time_ns in times]
    whats = [Rules(gap_threshold_ns=THRESHOLD_MAX_NS), *batches, Stopped("vm-1", times[-1] + THRESHOLD_MAX_NS)]
    events = [Event(sequence, EPOCH_NS, "", what) for sequence, what in enumerate(whats, 1)]
    ledger = ledger_of(events, SeededChooser(0))
    assert_billed_alike(events, ledger)
    (session,) = Bill(ledger).rows("sessions")
    assert session["memory_mib_seconds"] == 2**28 * 6 * 8 * 3600
    with pytest.raises(SettingError, match="GAP_THRESHOLD"):
        Settings.load({"UNKEY_BILLAGED_GAP_THRESHOLD": "8h1s"})


def test_a_journal_survives_its_encoding() -> None:
    """What the auditor bills is what the journal holds: payload bytes lose nothing."""
    for seed in range(20):
        events = seeded_journal(seed, events=60)
        for event, again in zip(events, to_events(decoded(events)), strict=True):
            assert again[:3] == event[:3]
            if isinstance(event.what, Batch):
                assert again.what == event.what._replace(samples=[Sample(*row) for row in event.what.samples])
            else:
                assert again.what == event.what


def journal_near_the_edge(seed: int, length: int = 60) -> list[Event]:
    """Counters jump between nothing and the most that 64 bits hold; starts in 1973 make it plausible."""
    chance = SeededChooser(seed)
    whats: list[What] = [Rules()]
    now_ns = dict.fromkeys(("vm-1", "vm-2", "vm-3"), EPOCH_NS)
    while len(whats) < length:
        vm_id = chance.pick((*now_ns,))
        at_ns = now_ns[vm_id]
        match chance.between(0, 19):
            case 0 | 1 | 2 | 3 | 4:
                whats.append(Started(vm_id, "acme", chance.pick((10**17, at_ns, at_ns + SECOND_NS))))
            case 5 | 6 | 7:
                whats.append(Stopped(vm_id, at_ns + chance.pick((0, SECOND_NS, HOUR_NS))))
            case 8 | 9:
                newest_ns = max(now_ns.values()) + MINUTE_NS
                whats.append(Tick(newest_ns, MINUTE_NS, chance.pick((False, True))))
            case _:
                rows = []
                # Some into the past, where what lies between two of a batch may be more than fits.
                back_ns = chance.pick((0, 0, 0, HOUR_NS, 10 * SECOND_NS)) + chance.pick((0, 1))
                for _ in range(chance.pick((1, 1, 3))):
                    now_ns[vm_id] += chance.pick((SECOND_NS, SECOND_NS, MINUTE_NS, HOUR_NS, 0))
                    rows.append(Sample(now_ns[vm_id] - back_ns, 1, *[chance.pick((0, 1, 5, 2**63 - 1))] * 5))
                whats.append(Batch(vm_id, "acme", rows))
    return [Event(sequence, EPOCH_NS, "", what) for sequence, what in enumerate(whats, 1)]


@pytest.mark.parametrize("first_seed", range(0, 120, 20))
def test_what_does_not_fit_64_bits_is_buried_alike_and_stops_nobody(first_seed: int) -> None:
    buried = 0
    for seed in range(first_seed, first_seed + 20):
        events = journal_near_the_edge(seed)
        ledger = ledger_of(events, SeededChooser(seed + 77))
        assert_billed_alike(events, ledger)
        buried += sum(reason == "overflow" for *_, reason in ledger["dead_letters"])
    assert buried


def test_what_only_fits_once_a_whole_batch_is_in_is_billed() -> None:
    """By hand: the first sample of the last batch alone would bring the first session to 2^63."""
    most = 2**63 - 1

    def read(*values: tuple[int, int]) -> Batch:
        return Batch(
            "vm-1", "acme", [Sample(EPOCH_NS + second * SECOND_NS, 0, 0, disk, 0, 0, 0) for second, disk in values]
        )

    starts = (Started("vm-1", "acme", 10**17), Started("vm-1", "acme", EPOCH_NS + 1_400 * SECOND_NS))
    whats: list[What] = [Rules(), starts[0], read((0, most)), read((900, 1)), starts[1], read((300, 0), (390, most))]
    events = [Event(sequence, EPOCH_NS, "", what) for sequence, what in enumerate(whats, 1)]
    ledger = ledger_of(events, SeededChooser(1))
    assert_billed_alike(events, ledger)
    assert not ledger["dead_letters"]


def test_a_stop_taken_back_after_a_restart_bills_as_if_it_had_never_been() -> None:
    """By hand, so that one case can be read: the tail billed before the restart is undone after it."""
    samples = [(EPOCH_NS + second * SECOND_NS, 2**30, second * 10**8, 0, 0, 0, 0) for second in (0, 60, 240)]
    whats = [
        Rules(),
        Started("vm-1", "acme", EPOCH_NS),
        Batch("vm-1", "acme", samples[:2]),
        Stopped("vm-1", EPOCH_NS + 120 * SECOND_NS),
        Tick(EPOCH_NS + 2 * HOUR_NS, 10 * MINUTE_NS, True),
        Tick(EPOCH_NS + 3 * HOUR_NS, 10 * MINUTE_NS, True),
        Batch("vm-1", "acme", samples[2:]),
    ]
    events = [Event(sequence, EPOCH_NS, "", what) for sequence, what in enumerate(whats, 1)]

    class AlwaysRestart:
        def between(self, low: int, high: int) -> int:
            return low

        def pick(self, options: tuple) -> object:
            return 1 if 1 in options else "flush and restart"

    ledger = ledger_of(events, AlwaysRestart())
    assert_billed_alike(events, ledger)
    (session,) = Bill(ledger).rows("sessions")
    assert session["end_ns"] is None
    assert session["measured_ns"] == 240 * SECOND_NS
    # 1 GiB from the first sample to the last, not a second twice.
    assert session["memory_mib_seconds"] == 240 * 1024
    # The bucket was closed when the late sample came.
    assert [row["kind"] for row in Bill(ledger).rows("anomalies")] == ["contradicted_stop"]
    assert Bill(ledger).rows("corrections")


@pytest.mark.parametrize("table", ["sessions", "facts", "anomalies", "tallies"])
def test_the_comparison_notices_one_changed_number(table: str) -> None:
    """The judge can say no: a ledger that is off by one nanosecond or byte is not equal."""
    events = within_settings(seeded_journal(3, events=120))
    ledger = ledger_of(events, SeededChooser(3))
    assert_billed_alike(events, ledger)
    row = ledger[table][0]
    at = max(index for index, value in enumerate(row) if isinstance(value, int))
    ledger[table][0] = (*row[:at], row[at] + 1, *row[at + 1 :])
    assert len(bill(events).differences(ledger)) == 2
