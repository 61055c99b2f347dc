"""Gap thresholds of single customers: in the fold, on disk, in reports, and on a real daemon."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from auditor.biller import bill
from auditor.convert import to_events
from click.testing import CliRunner
from daemon_calls import batch as usage
from daemon_calls import until
from daemon_process import DaemonProcess
from report_fixtures import GIB, at, batch
from test_fold import entries_of, ledger_after

from billaged.aggregator import computing
from billaged.aggregator.changes import Checkpoint, LedgerChanges
from billaged.aggregator.engine import Engine
from billaged.cli.main import billaged
from billaged.intake.journal import entry_of
from billaged.intake.sqlite import SqliteJournal
from billaged.ledger.checked import book_of, rules_of
from billaged.ledger.database import open_for_reading, open_for_writing
from billaged.ledger.reader import LedgerReader
from billaged.ledger.store import LedgerStore
from billaged.ledger.views import Subject
from billaged.model.errors import StorageError
from billaged.model.ids import MAX_ID_BYTES
from billaged.model.records import FoldRules, Kind, Record, Tick, VmStarted, VmStopped
from billaged.model.time import HOUR_NANOS, MINUTE_NANOS, NANOS
from billaged.reports.gaps import gap_lines
from billaged.reports.span import ALL_TIME
from billaged.wire.codec import decode, encode_own

SLOW = ("slow", 30 * MINUTE_NANOS)
RULES = FoldRules(gap_thresholds=(("quick", MINUTE_NANOS), SLOW))
CUSTOMERS = ("acme", "quick", "slow")
# A session's measured and gap time, and a gap's VM and times, in the ledger's rows.
MEASURED, GAP = 15, 16


def minutes(row: tuple[int, ...]) -> tuple[int, int]:
    """Measured, and gap."""
    return row[MEASURED] // MINUTE_NANOS, row[GAP] // MINUTE_NANOS


# --- the fold --------------------------------------------------------------------


def test_each_customer_has_its_own_threshold() -> None:
    assert [RULES.gap_threshold_of(customer) // MINUTE_NANOS for customer in CUSTOMERS] == [15, 1, 30]
    assert [RULES.gap_threshold_of(customer) // MINUTE_NANOS for customer in ("", "sloW", "zz", "quicker")] == [15] * 4


@pytest.mark.parametrize("group", [1, None])
def test_a_step_of_twenty_minutes_is_a_gap_for_one_and_measured_for_another(group: int | None) -> None:
    def steps(*clocks: str) -> list[Record]:
        return [
            batch(customer, (at(clock), GIB, number * 10**9), customer=customer)
            for number, clock in enumerate(clocks)
            for customer in CUSTOMERS
        ]

    # Exactly at a threshold, and a nanosecond over it is another one's gap.
    records = [RULES, *steps("10:00:00", "10:01:00", "10:16:00", "10:36:00", "11:06:00")]
    entries = entries_of(*records)
    ledger = ledger_after(entries, group)
    assert {row[0]: minutes(row) for row in ledger["sessions"]} == {
        "acme": (1 + 15, 20 + 30),
        "quick": (1, 15 + 20 + 30),
        "slow": (1 + 15 + 20 + 30, 0),
    }
    assert ledger == bill(to_events(entries)).dump()


def test_measured_steps_stay_in_the_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their threshold; and customers that nobody has seen when the rules came have theirs, too."""
    engine = Engine(Checkpoint())
    engine.fold(entries_of(RULES))
    position = engine.position
    one_by_one: list[str] = []
    fold_entries = computing.fold_entries
    monkeypatch.setattr(
        computing, "fold_entries", lambda vm, *rest: one_by_one.append(vm.vm_id) or fold_entries(vm, *rest)
    )
    for clock in ("10:00:00", "10:00:30", "10:01:00", "10:20:00"):
        for customer in (*CUSTOMERS, *(f"customer-{number}" for number in range(20))):
            (entry,) = entries_of(batch(customer, (at(clock), GIB), customer=customer))
            position += 1
            engine.fold([entry._replace(sequence=position)])
        if clock in ("10:00:30", "10:01:00"):
            assert one_by_one == []
        if clock == "10:20:00":
            assert "slow" not in one_by_one
            assert {"acme", "quick"} <= set(one_by_one)
        one_by_one.clear()


def test_a_vm_that_changes_hands_has_the_threshold_of_whose_it_is() -> None:
    records: list[Record] = [
        RULES,
        batch("vm", (at("10:00:00"), GIB), (at("10:20:00"), GIB)),
        VmStopped("vm", at("10:40:00")),
        batch("vm", (at("11:00:00"), GIB), (at("11:20:00"), GIB), customer="slow"),
        # Another's while it runs: a dead letter, and its threshold counts for nothing.
        batch("vm", (at("11:45:00"), GIB), customer="quick"),
        VmStopped("vm", at("11:50:00")),
        VmStarted("vm", "quick", at("12:00:00")),
        batch("vm", (at("12:01:00"), GIB), (at("12:03:00"), GIB), customer="quick"),
    ]
    entries = entries_of(*records)
    ledger = ledger_after(entries)
    assert [(row[2], minutes(row)) for row in ledger["sessions"]] == [
        ("acme", (0, 40)),
        ("slow", (50, 0)),
        ("quick", (1, 2)),
    ]
    assert ledger == bill(to_events(entries)).dump()


def test_a_stop_that_came_before_its_owner_was_known_has_the_owners_threshold() -> None:
    """Folded under nobody's, put right by the start: its tail of 40 minutes is longer than the common threshold."""
    rules = FoldRules(gap_thresholds=(("slow", HOUR_NANOS),))
    entries = entries_of(
        rules,
        VmStopped("vm", at("10:40:00")),
        VmStarted("vm", "slow", at("10:00:00")),
    )
    ledger = ledger_after(entries, 1)
    assert [minutes(row) for row in ledger["sessions"]] == [(40, 0)]
    assert ledger == bill(to_events(entries)).dump()


def test_a_step_keeps_the_threshold_it_was_billed_by() -> None:
    """The override comes, and goes again: each link has the rules of its time, also when it is walked again."""
    records: list[Record] = [
        FoldRules(),
        batch("vm", (at("10:00:00"), GIB), (at("10:20:00"), GIB), customer="slow"),
        RULES,
        batch("vm", (at("10:40:00"), GIB), customer="slow"),
        VmStopped("vm", at("11:05:00")),
        FoldRules(),
        # Contradicts the stop: its tail is taken back as the measured time that it was.
        batch("vm", (at("11:06:00"), GIB), customer="slow"),
        batch("vm", (at("10:05:00"), GIB), customer="slow"),
    ]
    entries = entries_of(*records)
    for group in (1, None):
        ledger = ledger_after(entries, group)
        # 10:00 to 10:05 and 10:05 to 10:20 are measured now, so is 10:20 to 10:40; 26 minutes are not.
        assert [minutes(row) for row in ledger["sessions"]] == [(40, 26)]
        assert ledger == bill(to_events(entries)).dump()


def test_a_vm_is_silent_after_its_own_threshold() -> None:
    started = [VmStarted(customer, customer, at("10:00:00")) for customer in CUSTOMERS]
    ticks = [Tick(at("10:00:00") + minute * MINUTE_NANOS, MINUTE_NANOS, False) for minute in range(1, 41)]
    entries = entries_of(RULES, *started, *ticks)
    ledger = ledger_after(entries)
    # A silence has the sequence of its tick: the one after the rules, the starts and so many minutes.
    assert {row[0]: row[4] - 4 for row in ledger["silences"]} == {"quick": 1, "acme": 15, "slow": 30}
    assert ledger == bill(to_events(entries)).dump()


def test_any_threshold_that_a_journal_holds_is_folded() -> None:
    rules = FoldRules(gap_threshold_ns=2**70, gap_thresholds=(("quick", 1), ("slow", 2**80)))
    records = [
        batch(customer, (at("10:00:00"), 2**48), (at("23:00:00"), 2**48), customer=customer) for customer in CUSTOMERS
    ]
    tick = Tick(at("23:00:00"), HOUR_NANOS, False)
    entries = entries_of(rules, *records, tick)
    ledger = ledger_after(entries)
    assert {row[0]: minutes(row) for row in ledger["sessions"]} == {
        "acme": (780, 0),
        "quick": (0, 780),
        "slow": (780, 0),
    }
    assert [row[0] for row in ledger["silences"]] == ["quick"]


# --- on disk ---------------------------------------------------------------------


def test_rules_without_overrides_are_written_as_ever_and_read_as_ever() -> None:
    old = (
        b'{"gap_threshold_ns":900000000000,"bucket_ns":3600000000000,"vanish_after_ns":3600000000000,'
        b'"max_cores":256,"max_gigabytes_per_second":50}'
    )
    assert encode_own(FoldRules()) == old
    assert decode(Kind.RULES, old) == FoldRules()


def test_overrides_survive_the_journal_and_the_ledger() -> None:
    assert decode(Kind.RULES, encode_own(RULES)) == RULES
    assert b'"gap_thresholds":{"quick":60000000000,"slow":1800000000000}' in encode_own(RULES)
    engine = Engine(Checkpoint())
    engine.fold(entries_of(FoldRules(), RULES))
    with closing(LedgerStore(open_for_writing(None), "journal")) as store:
        changes = engine.collect()
        assert changes is not None
        store.commit(changes)
        checkpoint = store.checkpoint()
    assert (checkpoint.rules, checkpoint.book) == (RULES, (FoldRules(), RULES))
    # The way back has one form whatever the order that they stood in.
    turned = json.loads(encode_own(RULES))
    turned["gap_thresholds"] = dict(reversed(turned["gap_thresholds"].items()))
    assert decode(Kind.RULES, json.dumps(turned).encode()) == RULES


@pytest.mark.parametrize("bad", ["[]", "7", '{"acme": 0}', '{"acme": "1"}', '{"acme": 1.5}', '{"acme": true}', "null"])
def test_damaged_overrides_are_named(bad: str) -> None:
    text = encode_own(RULES).decode().replace('{"quick":60000000000,"slow":1800000000000}', bad)
    with pytest.raises(StorageError, match="its rules is"):
        rules_of(text)
    with pytest.raises(StorageError, match="its rules is"):
        book_of(f'{{"now": 0, "all": [{text}]}}')


def test_a_book_is_written_when_it_changes_only(tmp_path: Path) -> None:
    """A thousand customers with long ids are a quarter of a megabyte: not at each commit."""
    path = tmp_path / "ledger.db"
    many = FoldRules(
        gap_thresholds=tuple((f"{number:04}".ljust(MAX_ID_BYTES, "x"), MINUTE_NANOS) for number in range(1_000))
    )
    store = LedgerStore(open_for_writing(path), "journal")
    engine = Engine(store.checkpoint())
    sequence = 0

    def commit(record: Record) -> LedgerChanges:
        nonlocal sequence
        sequence += 1
        engine.fold([entries_of(record)[0]._replace(sequence=sequence)])
        changes = engine.collect()
        assert changes is not None
        store.commit(changes)
        return changes

    commit(many)
    with closing(sqlite3.connect(path)) as other:
        written = other.execute("SELECT rules FROM checkpoint").fetchone()[0]
        # Not written again: this would not stay.
        other.execute("UPDATE checkpoint SET rules = ?", (f"{written} ",))
        other.commit()
        commit(Tick(at("10:00:00"), NANOS, False))
        assert other.execute("SELECT position, rules FROM checkpoint").fetchone() == (2, f"{written} ")
        commit(RULES)
        assert other.execute("SELECT rules FROM checkpoint").fetchone()[0] != written
    store.close()
    with closing(LedgerStore(open_for_writing(path), "journal")) as again:
        assert again.checkpoint().book[1:] == (many, RULES)
        assert again.checkpoint().rules == RULES


# --- reports ---------------------------------------------------------------------


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[LedgerReader]:
    """A ledger with one running VM of each customer, sampled at 10:00."""
    records = [batch(customer, (at("10:00:00"), GIB), customer=customer) for customer in CUSTOMERS]
    path = tmp_path / "ledger.db"
    engine = Engine(Checkpoint())
    engine.fold(entries_of(RULES, *records))
    with closing(LedgerStore(open_for_writing(path), "journal")) as store:
        changes = engine.collect()
        assert changes is not None
        store.commit(changes)
    database = open_for_reading(path)
    with database.connect() as connection:
        yield LedgerReader(connection)
    database.dispose()


@pytest.mark.parametrize(
    ("clock", "pending"),
    [
        ("10:01:00", set()),
        ("10:02:00", {"quick"}),
        ("10:20:00", {"quick", "acme"}),
        ("10:31:00", {"quick", "acme", "slow"}),
    ],
)
def test_a_gap_is_pending_after_the_threshold_of_its_customer(
    reader: LedgerReader, clock: str, pending: set[str]
) -> None:
    lines = gap_lines(reader, Subject(), ALL_TIME, at(clock))
    assert {line.vm_id for line in lines if line.state == "pending"} == pending


# --- a real daemon ---------------------------------------------------------------


def verified(data_dir: Path) -> None:
    result = CliRunner().invoke(billaged, ["verify", "--data-dir", str(data_dir), "--format", "json"])
    assert result.exit_code == 0, result.output
    assert {check["state"] for check in json.loads(result.stdout)["invariants"]} == {"holds"}


def test_two_customers_and_a_restart_with_other_thresholds(tmp_path: Path) -> None:
    data_dir = tmp_path / "var"
    begun_ns = time.time_ns() // HOUR_NANOS * HOUR_NANOS - 10 * HOUR_NANOS
    names = ("acme", "slow")

    def step(daemon: DaemonProcess, number: int) -> None:
        for name in names:
            daemon.call("SendMetricsBatch", usage(name, begun_ns + number * 20 * MINUTE_NANOS, customer_id=name))

    def sessions(daemon: DaemonProcess) -> dict[str, tuple[int, int]]:
        return {row[0]: minutes(row) for row in daemon.ledger()["sessions"]}

    with DaemonProcess(data_dir, {"GAP_THRESHOLDS": "slow=30m"}) as daemon:
        for number in range(3):
            step(daemon, number)
        expected = {"acme": (0, 40), "slow": (40, 0)}
        until(lambda: sessions(daemon) == expected, "a gap for the one, and measured for the other")
        assert daemon.stop() == 0
    with DaemonProcess(data_dir, {"GAP_THRESHOLDS": "acme=1h,slow=10m"}) as daemon:
        step(daemon, 3)
        expected = {"acme": (20, 40), "slow": (40, 20)}
        until(lambda: sessions(daemon) == expected, "what was billed stays, what comes is billed otherwise")
        verified(data_dir)
        assert daemon.stop() == 0
    # The same in another order is no new record.
    with DaemonProcess(data_dir, {"GAP_THRESHOLDS": "slow=10m,acme=1h"}) as daemon:
        step(daemon, 4)
        until(lambda: sessions(daemon) == {"acme": (40, 40), "slow": (40, 40)}, "all goes on as before")
        assert daemon.stop() == 0
        ledger = daemon.ledger()
    verified(data_dir)
    with closing(SqliteJournal(data_dir / "journal.db")) as journal:
        entries = [entry_of(row) for rows in journal.read(0) for row in rows]
    assert [entry.record for entry in entries if entry.kind is Kind.RULES] == [
        FoldRules(gap_thresholds=(SLOW,)),
        FoldRules(gap_thresholds=(("acme", HOUR_NANOS), ("slow", 10 * MINUTE_NANOS))),
    ]
    assert bill(to_events(entries)).differences(ledger) == []
