"""Who is not heard, and why: by ticks, never by a clock; whatever is grouped, flushed, evicted or restarted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from auditor.biller import bill
from auditor.convert import to_events
from report_fixtures import GIB, at, batch
from sqlalchemy import text

from billaged.aggregator import engine as engine_module
from billaged.aggregator.summary import SummaryBatch
from billaged.aggregator.worker import Aggregator
from billaged.daemon import SystemClock
from billaged.ledger.database import open_for_writing
from billaged.ledger.dump import DUMPED, dump_rows
from billaged.ledger.store import LedgerStore
from billaged.model.records import (
    FoldRules,
    Heartbeat,
    JournalEntry,
    Record,
    Resumed,
    Tick,
    VmStarted,
    VmStopped,
)
from billaged.model.time import DAY_NANOS, HOUR_NANOS, MINUTE_NANOS, NANOS
from billaged.wire.codec import kind_of

START = at("10:00:00")


class Fold:
    """The fold and its ledger, in memory. ``time`` is the wall clock of the ticks."""

    def __init__(self) -> None:
        self._database = open_for_writing(None)
        self.summaries: list[SummaryBatch] = []
        self.time_ns = START
        self._sequence = 0
        self._journal: list[JournalEntry] = []
        self.restart()

    def publish(self, batch: SummaryBatch) -> None:
        self.summaries.append(batch)

    def restart(self) -> None:
        """Another daemon takes the ledger up."""
        store = LedgerStore(self._database, "journal")
        self._aggregator = Aggregator(store, self, SystemClock(), NANOS, _fail)
        self._aggregator.load()

    def put(self, *records: Record) -> None:
        """Fold them together, then flush."""
        self._aggregator.replay([self._entries(records)])

    def put_apart(self, *groups: list[Record]) -> None:
        """Fold these groups one after the other, then flush."""
        self._aggregator.replay([self._entries(group) for group in groups])

    def _entries(self, records: tuple[Record, ...] | list[Record]) -> list[JournalEntry]:
        entries = []
        for record in records:
            self._sequence += 1
            entries.append(JournalEntry(self._sequence, kind_of(record), self.time_ns, "", b"", record))
        self._journal += entries
        return entries

    def pass_time(self, minutes: float, ticks: int = 1) -> None:
        """So many ticks that together are so long."""
        length_ns = int(minutes * MINUTE_NANOS) // ticks
        for _ in range(ticks):
            self.time_ns += length_ns
            self.put(Tick(self.time_ns, length_ns, closes_interval=False))

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self._database.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    def silences(self) -> list[tuple[Any, ...]]:
        """As VM, reason, start and end in minutes since the start."""
        rows = self.rows("SELECT vm_id, reason, start_ns, end_ns FROM silences ORDER BY vm_id, start_ns, reason")
        return [
            (vm_id, reason, (start - START) / MINUTE_NANOS, None if end is None else (end - START) / MINUTE_NANOS)
            for vm_id, reason, start, end in rows
        ]

    def session(self, vm_id: str = "vm") -> tuple[Any, ...]:
        """The newest one: last and end in minutes since the start, and how it ended."""
        query = f"SELECT last_ns, end_ns, end_kind FROM sessions WHERE vm_id = '{vm_id}' AND newest = 1"
        ((last_ns, end_ns, end_kind),) = self.rows(query)
        return ((last_ns - START) / MINUTE_NANOS, None if end_ns is None else (end_ns - START) / MINUTE_NANOS, end_kind)

    def dump(self) -> dict[str, list[tuple[Any, ...]]]:
        with self._database.connect() as connection:
            return {table: [tuple(row) for row in dump_rows(connection, table)] for table in DUMPED}

    def audited(self) -> dict[str, list[tuple[Any, ...]]]:
        """What the auditor makes of the same journal."""
        return {table: list(rows) for table, rows in bill(to_events(self._journal)).dump().items()}


def _fail(error: BaseException) -> None:
    raise error


@pytest.fixture
def fold() -> Fold:
    return Fold()


def sample(minute: float, vm_id: str = "vm", cpu: int = 0, customer: str = "acme") -> Record:
    return batch(vm_id, (START + int(minute * MINUTE_NANOS), GIB, cpu), customer=customer)


def beat(instance_id: str, *vm_ids: str) -> Heartbeat:
    return Heartbeat(instance_id, vm_ids)


def keep_beating(fold: Fold, minutes: int, *beats: Heartbeat) -> None:
    """For so many minutes, in ticks of one."""
    for _ in range(minutes):
        fold.put(*beats)
        fold.pass_time(1)


# --- VMs that are silent -----------------------------------------------------------


def test_a_listed_vm_that_sends_nothing_is_silent_after_the_threshold(fold: Fold) -> None:
    fold.put(beat("host", "vm"), sample(0), sample(5))
    keep_beating(fold, 14, beat("host", "vm"))
    assert fold.silences() == []
    keep_beating(fold, 1, beat("host", "vm"))
    assert fold.silences() == [("vm", "silent_vm", 5, None)]
    keep_beating(fold, 30, beat("host", "vm"))
    fold.put(sample(50))
    assert fold.silences() == [("vm", "silent_vm", 5, 50)]
    assert fold.session() == (50, None, None)


def test_who_is_listed_by_nobody_has_no_samples(fold: Fold) -> None:
    fold.put(sample(0))
    fold.pass_time(15)
    assert fold.silences() == [("vm", "no_samples", 0, None)]
    fold.pass_time(24 * 60, ticks=24)
    # Never listed: nobody can say that it is gone.
    assert fold.session() == (0, None, None)


def test_a_batch_that_changes_nothing_is_heard_all_the_same(fold: Fold) -> None:
    fold.put(sample(0), sample(5))
    fold.pass_time(10)
    fold.put(sample(5))
    fold.pass_time(14)
    assert fold.silences() == []
    fold.restart()
    fold.pass_time(1)
    assert fold.silences() == [("vm", "no_samples", 5, None)]


def test_what_another_customer_sends_is_not_heard(fold: Fold) -> None:
    fold.put(sample(0))
    fold.pass_time(10)
    fold.put(sample(8, customer="bravo"))
    fold.pass_time(5)
    assert fold.silences() == [("vm", "no_samples", 0, None)]


def test_only_whole_seconds_of_the_sum_of_ticks_count(fold: Fold) -> None:
    fold.put(FoldRules(gap_threshold_ns=2 * NANOS))
    fold.pass_time(0.9 / 60)
    fold.put(sample(0))
    # Heard at 0 s (of 0.9); at 1.8 s one whole second has passed, at 2.7 s two have.
    fold.pass_time(0.9 / 60)
    assert fold.silences() == []
    fold.pass_time(0.9 / 60)
    assert fold.silences() == [("vm", "no_samples", 0, None)]


def test_a_wrong_clock_makes_nobody_silent(fold: Fold) -> None:
    fold.put(beat("host", "vm"), sample(0))
    fold.put(beat("host"))
    for jump in (DAY_NANOS, -2 * DAY_NANOS, 365 * DAY_NANOS):
        fold.time_ns += jump
        fold.put(Tick(fold.time_ns, NANOS, closes_interval=False))
    assert fold.silences() == []
    assert fold.session() == (0, None, None)


def test_the_same_again_changes_nothing(fold: Fold) -> None:
    fold.put(VmStarted("vm", "acme", START))
    fold.pass_time(15)
    # At the very instant of the start: the silence has no length.
    fold.put(sample(0))
    assert fold.silences() == [("vm", "no_samples", 0, 0)]
    opened = fold.rows("SELECT sequence FROM silences")
    fold.pass_time(15)
    fold.put(sample(40))
    assert fold.silences() == [("vm", "no_samples", 0, 0)]
    assert fold.rows("SELECT sequence FROM silences") == opened


def test_a_stop_ends_the_silence(fold: Fold) -> None:
    fold.put(sample(0))
    fold.pass_time(15)
    fold.put(VmStopped("vm", START + 3 * MINUTE_NANOS))
    assert fold.silences() == [("vm", "no_samples", 0, 3)]
    fold.pass_time(60, ticks=4)
    assert fold.silences() == [("vm", "no_samples", 0, 3)]


# --- hosts that are silent -----------------------------------------------------------


def test_a_host_that_stops_beating_silences_its_vms_at_once(fold: Fold) -> None:
    fold.put(beat("one", "a", "b", "stopped"), beat("two", "b", "c"))
    fold.put(*(sample(0, vm_id) for vm_id in ("a", "b", "c", "stopped")), VmStopped("stopped", START))
    keep_beating(fold, 1, beat("two", "b", "c"))
    assert fold.silences() == []
    keep_beating(fold, 1, beat("two", "b", "c"))
    # 120 s by now: nobody else lists a, but two does list b.
    assert fold.silences() == [("a", "silent_host", 0, None)]
    assert fold.rows("SELECT instance_id, heard_seconds, silent FROM instances ORDER BY 1") == [
        ("one", 0, 1),
        ("two", 60, 0),
    ]
    fold.pass_time(1.5)
    assert fold.silences() == [(vm_id, "silent_host", 0, None) for vm_id in ("a", "b", "c")]
    fold.put(sample(4, "a"))
    assert fold.silences()[0] == ("a", "silent_host", 0, 4)


def test_a_host_that_beats_again_leaves_the_vm_silent_until_it_is_heard(fold: Fold) -> None:
    fold.put(beat("host", "vm"), sample(0))
    fold.pass_time(2)
    keep_beating(fold, 13, beat("host", "vm"))
    assert fold.silences() == [("vm", "silent_host", 0, None), ("vm", "silent_vm", 0, None)]
    fold.put(sample(20))
    assert fold.silences() == [("vm", "silent_host", 0, 20), ("vm", "silent_vm", 0, 20)]


def test_once_told_a_vm_is_not_told_again(fold: Fold) -> None:
    fold.put(beat("host", "vm"), sample(0))
    fold.pass_time(15)
    assert fold.silences() == [("vm", "silent_host", 0, None)]
    keep_beating(fold, 30, beat("host", "vm"))
    assert fold.silences() == [("vm", "silent_host", 0, None)]


# --- VMs that have vanished -----------------------------------------------------------


def vanished(fold: Fold) -> None:
    """A VM that was listed, is no more, and sends nothing for an hour."""
    fold.put(beat("host", "vm"), VmStarted("vm", "acme", START - MINUTE_NANOS), sample(0), sample(5, cpu=100))
    keep_beating(fold, 5, beat("host", "vm"))
    fold.put(beat("host"))
    fold.pass_time(60, ticks=60)


def test_a_vm_that_nobody_lists_any_more_has_vanished(fold: Fold) -> None:
    vanished(fold)
    assert fold.session() == (5, 5, "vanished")
    assert fold.silences() == [("vm", "no_samples", 5, None), ("vm", "vanished", 5, None)]
    assert fold.rows("SELECT kind, vm_id, at_ns, ordinal, detail, sequence, item FROM anomalies") == [
        ("vanished", "vm", START + 5 * MINUTE_NANOS, 1, "{}", fold.rows("SELECT max(sequence) FROM anomalies")[0][0], 0)
    ]
    # No tail: measured up to its newest sample.
    assert fold.rows("SELECT measured_ns, gap_ns, cpu_time_ns FROM sessions") == [(6 * MINUTE_NANOS, 0, 100)]


def test_unlisted_and_unheard_must_both_have_lasted(fold: Fold) -> None:
    fold.put(beat("host", "vm"), sample(0))
    fold.pass_time(30)
    fold.put(beat("host"))
    fold.pass_time(30)
    fold.put(sample(60))
    fold.pass_time(59)
    assert fold.session() == (60, None, None)
    fold.pass_time(1)
    assert fold.session() == (60, 60, "vanished")


def test_a_list_that_was_dropped_late_counts_from_then(fold: Fold) -> None:
    fold.put(beat("host", "vm"), sample(0))
    fold.pass_time(50)
    fold.put(beat("host"))
    fold.restart()
    fold.pass_time(59)
    assert fold.session() == (0, None, None)
    fold.pass_time(1)
    assert fold.session() == (0, 0, "vanished")


def test_a_silent_host_still_lists_its_vms(fold: Fold) -> None:
    fold.put(beat("host", "vm"), sample(0))
    fold.pass_time(7 * 24 * 60, ticks=100)
    assert fold.session() == (0, None, None)
    assert fold.silences() == [("vm", "silent_host", 0, None)]


def test_who_comes_back_has_not_vanished(fold: Fold) -> None:
    vanished(fold)
    fold.restart()
    fold.put(sample(70, cpu=150))
    assert fold.session() == (70, None, None)
    assert fold.silences() == [("vm", "no_samples", 5, 70), ("vm", "vanished", 5, 70)]
    assert fold.rows("SELECT kind, at_ns FROM anomalies ORDER BY sequence") == [
        ("vanished", START + 5 * MINUTE_NANOS),
        ("returned", START + 5 * MINUTE_NANOS),
    ]
    assert fold.rows("SELECT ordinal, cpu_time_ns, gap_ns FROM sessions") == [(1, 150, 65 * MINUTE_NANOS)]
    # Nobody lists it still: it may vanish again.
    fold.pass_time(60)
    assert fold.session() == (70, 70, "vanished")


def test_a_stop_that_comes_later_is_where_it_ended(fold: Fold) -> None:
    vanished(fold)
    fold.put(VmStopped("vm", START + 9 * MINUTE_NANOS))
    assert fold.session() == (5, 9, "stop")
    assert fold.silences() == [("vm", "no_samples", 5, 9), ("vm", "vanished", 5, 9)]


def test_another_customer_takes_over_what_vanished(fold: Fold) -> None:
    vanished(fold)
    fold.put(sample(80, customer="bravo"))
    assert fold.rows("SELECT customer_id, end_kind FROM sessions ORDER BY ordinal") == [
        ("acme", "vanished"),
        ("bravo", None),
    ]
    assert fold.silences() == [("vm", "no_samples", 5, 80), ("vm", "vanished", 5, 80)]
    # Its session was never listed.
    fold.pass_time(120, ticks=2)
    assert fold.session() == (80, None, None)


def test_listed_by_another_host_it_has_moved(fold: Fold) -> None:
    """Both list and report it for a while, the new host with counters of its own."""
    fold.put(beat("old", "vm"), beat("new"), sample(0, cpu=1_000))
    for minute in range(5, 30, 5):
        both = (beat("old", "vm"), beat("new", "vm")) if minute > 5 else (beat("old", "vm"), beat("new"))
        fold.put(sample(minute, cpu=1_000 + minute), sample(minute + 1, cpu=minute))
        keep_beating(fold, 5, *both)
    fold.put(beat("old"))
    for minute in range(30, 180, 5):
        fold.put(sample(minute, cpu=minute))
        keep_beating(fold, 1, beat("old"), beat("new", "vm"))
    assert fold.session() == (175, None, None)
    assert fold.silences() == []
    # What either counted, and not the jumps between them.
    ((cpu,),) = fold.rows("SELECT cpu_time_ns FROM sessions")
    assert cpu <= 25 + 175


def test_an_ended_vm_does_not_vanish(fold: Fold) -> None:
    fold.put(beat("host", "vm"), sample(0), VmStopped("vm", START + MINUTE_NANOS))
    fold.put(beat("host"))
    fold.pass_time(120, ticks=2)
    assert fold.session() == (0, 1, "stop")
    # It ran all the time, says this one: since it runs nobody has listed it, but somebody had before.
    fold.put(sample(2))
    fold.pass_time(59)
    assert fold.session() == (2, None, None)
    fold.pass_time(1)
    assert fold.session() == (2, 2, "vanished")


# --- billaged itself ------------------------------------------------------------------


def test_a_time_without_billaged_is_a_silence_of_all(fold: Fold) -> None:
    fold.put(sample(0), Resumed(START, START + HOUR_NANOS), Resumed(START + 7, START + 7), Resumed(START + 9, START))
    assert fold.silences() == [("", "billaged_down", 0, 60)]
    assert fold.session() == (0, None, None)


# --- however it is folded ---------------------------------------------------------------


def a_history(chance: random.Random, length: int) -> list[Record]:
    """Everything that silences depend on, at times that move on slowly."""
    vms, hosts = [f"vm-{number}" for number in range(5)], ["one", "two", "three"]
    records: list[Record] = [FoldRules(gap_threshold_ns=5 * MINUTE_NANOS, vanish_after_ns=10 * MINUTE_NANOS)]
    time_ns = START
    for _ in range(length):
        vm_id, choice = chance.choice(vms), chance.random()
        moment_ns = time_ns + chance.randrange(-MINUTE_NANOS, MINUTE_NANOS)
        if choice < 0.3:
            records.append(batch(vm_id, (moment_ns, GIB, time_ns - START)))
        elif choice < 0.35:
            records.append(VmStarted(vm_id, "acme", moment_ns))
        elif choice < 0.43:
            records.append(VmStopped(vm_id, moment_ns))
        elif choice < 0.65:
            records.append(Heartbeat(chance.choice(hosts), tuple(chance.sample(vms, chance.choice((0, 1, 1, 2))))))
        elif choice < 0.67:
            records.append(Resumed(time_ns, time_ns + chance.randrange(-5, 100)))
        else:
            length_ns = chance.choice((0, 30, 60, 90, 200)) * NANOS
            time_ns += length_ns
            records.append(Tick(time_ns, length_ns, closes_interval=chance.random() < 0.2))
    return records


@contextmanager
def nobody_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ended sessions leave memory at each flush."""
    with monkeypatch.context() as patched:
        patched.setattr(engine_module, "_ENDED_KEPT", -1)
        yield


@pytest.mark.parametrize("seed", range(12))
def test_the_same_whatever_is_grouped_flushed_evicted_or_restarted(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    records = a_history(chance, 150)
    together = Fold()
    together.put(*records)
    expected = together.dump()
    assert {row[2] for row in expected["silences"]} >= {"no_samples", "silent_host"}
    assert together.audited() == expected
    one_by_one = Fold()
    one_by_one.put_apart(*([record] for record in records))
    assert one_by_one.dump() == expected
    with nobody_kept(monkeypatch):
        flushed = Fold()
        at = 0
        while at < len(records):
            size = chance.choice((1, 1, 2, 3, 10, 30))
            flushed.put(*records[at : at + size])
            at += size
            if chance.random() < 0.3:
                flushed.restart()
        assert flushed.dump() == expected
