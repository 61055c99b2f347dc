"""The ledger's store: all or nothing, one writer, and numbers that carry over as they should."""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine as Database
from sqlalchemy.exc import OperationalError

from billaged.aggregator.changes import FACT_COLUMNS, Checkpoint
from billaged.aggregator.engine import Engine
from billaged.aggregator.timelines import load_timelines
from billaged.intake.sqlite import SqliteJournal
from billaged.ledger.database import open_for_reading, open_for_writing
from billaged.ledger.dump import dump
from billaged.ledger.store import LedgerStore
from billaged.ledger.tables import metadata
from billaged.model.errors import DurabilityLost, StorageError
from billaged.model.records import FoldRules, JournalEntry, Kind, MetricsBatch, Record, Tick, VmStarted, VmStopped
from billaged.model.time import HOUR_NANOS, MINUTE_NANOS, NANOS
from billaged.wire.codec import rules_to_json

EPOCH = 500_000 * HOUR_NANOS
KINDS = {MetricsBatch: Kind.METRICS, VmStarted: Kind.STARTED, VmStopped: Kind.STOPPED, Tick: Kind.TICK}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    made = open_for_writing(path)
    yield made
    made.dispose()


def sample(vm_id: str, second: int, memory: int = 0, cpu: int = 0) -> MetricsBatch:
    return MetricsBatch(vm_id, "acme", array("q", [EPOCH + second * NANOS, memory, cpu, 0, 0, 0, 0]))


def fold(engine: Engine, *records: Record) -> None:
    """The records as the next rows of the journal."""
    first = engine.position + 1
    engine.fold(
        [
            JournalEntry(sequence, KINDS.get(type(record), Kind.RULES), EPOCH, "", b"", record)
            for sequence, record in enumerate(records, first)
        ]
    )


def flush(engine: Engine, store: LedgerStore) -> None:
    changes = engine.collect()
    assert changes is not None
    store.commit(changes)


# --- the checkpoint ------------------------------------------------------------------


def test_a_new_ledger_begins_at_nothing(database: Database) -> None:
    store = LedgerStore(database, "journal-1")
    assert store.checkpoint() == Checkpoint()
    assert [list(rows) for rows in store.running_sessions()] == []
    assert store.newest_sessions(["vm-1"]) == []


def test_the_checkpoint_comes_back_with_rules_and_clock(path: Path) -> None:
    rules = FoldRules(5 * MINUTE_NANOS, 30 * MINUTE_NANOS, HOUR_NANOS, 7, 8)
    with closing(LedgerStore(open_for_writing(path), "journal-1")) as store:
        engine = Engine(store.checkpoint())
        ticks = [Tick(EPOCH + HOUR_NANOS + n, MINUTE_NANOS, closes_interval=n == 1) for n in range(3)]
        fold(engine, rules, sample("vm-1", 0), *ticks)
        flush(engine, store)
        expected = engine.checkpoint()
        assert (expected.position, expected.window_number, expected.rules) == (5, 1, rules)
        assert expected.clock.waiting
    with closing(LedgerStore(open_for_writing(path), "journal-1")) as store:
        assert store.checkpoint() == expected


def test_a_ledger_of_an_earlier_version_is_refused_and_left_alone(path: Path) -> None:
    """It kept the rules in force only, and nothing around its sessions' newest samples."""
    with closing(LedgerStore(open_for_writing(path), "journal-1")) as store:
        engine = Engine(store.checkpoint())
        fold(engine, FoldRules(), sample("vm-1", 0))
        flush(engine, store)
    change(path, f"UPDATE checkpoint SET rules = '{json.dumps(rules_to_json(FoldRules()))}'")
    with pytest.raises(StorageError, match=r"rules of an earlier version.*journal replay --into"):
        LedgerStore(open_for_writing(path), "journal-1")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT epoch FROM checkpoint").fetchone() == (1,)


def test_all_rules_so_far_are_kept_each_once(database: Database) -> None:
    store = LedgerStore(database, "journal-1")
    engine = Engine(store.checkpoint())
    other = FoldRules(bucket_ns=MINUTE_NANOS)
    fold(engine, FoldRules(), other, FoldRules(), sample("vm-1", 0), Tick(EPOCH, 7 * NANOS, False))
    flush(engine, store)
    checkpoint = LedgerStore(database, "journal-1").checkpoint()
    assert (checkpoint.rules, checkpoint.book) == (FoldRules(), (FoldRules(), other))
    assert checkpoint.passed_ns == 7 * NANOS
    assert checkpoint == engine.checkpoint()


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute(statement).rowcount
        connection.commit()


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("UPDATE checkpoint SET clock = 'x'", "checkpoint is damaged: its clock is 'x'"),
        ("UPDATE checkpoint SET clock = '{\"waiting\": 3}'", "checkpoint is damaged: its clock"),
        ("UPDATE checkpoint SET clock = replace(clock, '[]', '[[1, 2, 3]]')", "checkpoint is damaged: its clock"),
        ("UPDATE checkpoint SET clock = replace(clock, '[]', '[[1, \"2\"]]')", "checkpoint is damaged: its clock"),
        ("UPDATE checkpoint SET rules = '[1]'", "checkpoint is damaged: its rules"),
        (
            "UPDATE checkpoint SET rules = replace(rules, '\"now\": 0', '\"now\": 1')",
            "checkpoint is damaged: its rules",
        ),
        ("UPDATE checkpoint SET rules = replace(rules, '256', '\"256\"')", "checkpoint is damaged: its rules"),
        ("UPDATE checkpoint SET passed_ns = 'long'", r"checkpoint row \(part 0\) is damaged: passed_ns is 'long'"),
        ("UPDATE checkpoint SET position = 'far'", r"checkpoint row \(part 0\) is damaged: position is 'far'"),
        ("UPDATE sessions SET start_ns = 'abc'", r"sessions row \(vm_id 'vm-1', ordinal 1\) is damaged: start_ns"),
        ("UPDATE sessions SET state = 'text'", r"sessions row .* is damaged: state is 'text'"),
        ("UPDATE sessions SET last_ns = 1.5", r"sessions row .* is damaged: last_ns is 1\.5"),
        ("UPDATE sessions SET customer_id = CAST(x'ff' AS TEXT)", "cannot be read: Could not decode to UTF-8 column"),
    ],
)
def test_what_was_changed_by_hand_is_named(path: Path, statement: str, named: str) -> None:
    with closing(LedgerStore(open_for_writing(path), "journal-1")) as store:
        engine = Engine(store.checkpoint())
        fold(engine, FoldRules(), sample("vm-1", 0), sample("vm-2", 0))
        flush(engine, store)
    change(path, statement)

    def start() -> None:
        with closing(LedgerStore(open_for_writing(path), "journal-1")) as store:
            for rows in store.running_sessions():
                Engine(store.checkpoint()).restore(rows)

    def look_up() -> None:
        with closing(LedgerStore(open_for_writing(path), "journal-1")) as store:
            store.newest_sessions(["vm-1"])

    for way in (start, look_up):
        with pytest.raises(StorageError, match=named) as refused:
            way()
        assert "\ufffd" not in str(refused.value)


def test_a_ledger_of_another_journal_is_refused(database: Database) -> None:
    LedgerStore(database, "journal-1")
    with pytest.raises(StorageError, match=r"journal-1, but the journal beside it is journal-2.*Put back"):
        LedgerStore(database, "journal-2")


def test_who_was_overtaken_writes_nothing_more(database: Database) -> None:
    """A daemon that was frozen while another took over its ledger: fenced, not merged."""
    first = LedgerStore(database, "journal-1")
    overtaken = Engine(first.checkpoint())
    fold(overtaken, sample("vm-1", 0))
    flush(overtaken, first)
    second = LedgerStore(database, "journal-1")
    fold(overtaken, sample("vm-1", 60, cpu=NANOS))
    before = dump(database)
    with pytest.raises(StorageError, match="another daemon has taken over"):
        flush(overtaken, first)
    assert dump(database) == before
    heir = Engine(second.checkpoint())
    fold(heir, sample("vm-2", 60))
    flush(heir, second)
    assert {row[0] for row in dump(database)["sessions"]} == {"vm-1", "vm-2"}


def test_a_commit_that_does_not_continue_where_the_ledger_is_writes_nothing(database: Database) -> None:
    store = LedgerStore(database, "journal-1")
    one, other = Engine(store.checkpoint()), Engine(store.checkpoint())
    fold(one, sample("vm-1", 0))
    fold(other, sample("vm-2", 0))
    flush(one, store)
    with pytest.raises(StorageError, match="another daemon"):
        flush(other, store)
    assert [row[0] for row in dump(database)["sessions"]] == ["vm-1"]


def test_a_commit_that_fails_half_way_leaves_nothing_of_it(database: Database) -> None:
    store = LedgerStore(database, "journal-1")
    engine = Engine(store.checkpoint())
    fold(engine, sample("vm-1", 60), sample("vm-1", 60, cpu=1))
    flush(engine, store)
    before = dump(database)
    assert before["anomalies"]
    fold(engine, sample("vm-1", 120, cpu=NANOS), sample("vm-2", 0))
    changes = engine.collect()
    assert changes is not None
    # An anomaly that is there already breaks the last statements; sessions and facts are written by then.
    changes.anomalies.append(before["anomalies"][0])
    with pytest.raises(DurabilityLost, match="cannot be committed"):
        store.commit(changes)
    assert dump(database) == before
    assert LedgerStore(database, "journal-1").checkpoint().position == 2


def test_a_kept_instant_that_was_changed_by_hand_is_named(path: Path) -> None:
    with closing(LedgerStore(open_for_writing(path), "journal-1")) as store:
        engine = Engine(store.checkpoint())
        fold(engine, sample("vm-1", 0))
        flush(engine, store)
    for content in ("x''", "x'02'", "CAST(content || x'00' AS BLOB)"):
        change(path, f"UPDATE kept_instants SET content = {content}")
        with closing(LedgerStore(open_for_writing(path), "journal-1")) as store:
            assert len(store.kept_instants(("vm-1", "vm-2"))) == 1
            with pytest.raises(StorageError, match=r"kept instant at .* is damaged"):
                load_timelines(store, ("vm-1",))
    change(path, "UPDATE kept_instants SET content = 'text'")
    with (
        closing(LedgerStore(open_for_writing(path), "journal-1")) as store,
        pytest.raises(StorageError, match=r"kept_instants row .* is damaged: content is 'text'"),
    ):
        store.kept_instants(("vm-1",))


def test_what_is_too_old_to_be_kept_leaves_the_file_but_never_a_vms_newest_two(database: Database) -> None:
    store = LedgerStore(database, "journal-1")
    engine = Engine(store.checkpoint())
    day = 24 * 3_600
    # Every step is a gap: all of it is kept.
    fold(engine, *(sample(vm_id, second) for vm_id in ("vm-1", "vm-2") for second in (0, day, 2 * day)))
    fold(engine, sample("vm-2", 40 * day), Tick(EPOCH + 37 * day * NANOS, NANOS, False))
    flush(engine, store)

    def kept() -> list[tuple[str, int]]:
        return [(row[0], (row[2] - EPOCH) // (day * NANOS)) for row in store.kept_instants(("vm-1", "vm-2"))]

    assert kept() == [("vm-1", 1), ("vm-1", 2), ("vm-2", 2), ("vm-2", 40)]


# --- the rows ------------------------------------------------------------------------


def test_facts_of_many_commits_add_up_and_memory_carries_over(database: Database) -> None:
    """Steps of a third of a MiB-second each: the rests carry into whole ones, over commits as in one."""
    store = LedgerStore(database, "journal-1")
    engine = Engine(store.checkpoint())
    memory = 2**20 // 3
    for second in range(31):
        fold(engine, sample("vm-1", second, memory=memory + second % 2, cpu=second * 10**8))
        flush(engine, store)
    (row,) = dump(database)["facts"]
    fact = dict(zip(FACT_COLUMNS, row, strict=True))
    byte_seconds = 15 * memory + 15 * (memory + 1)
    assert fact["memory_mib_seconds"] == byte_seconds >> 20 > 0
    assert fact["memory_rest_byte_nanos"] == (byte_seconds & 0xFFFFF) * NANOS
    assert (fact["cpu_time_ns"], fact["samples"], fact["measured_ns"]) == (3 * NANOS, 31, 30 * NANOS)
    assert fact["memory_peak_bytes"] == memory + 1


def test_sessions_are_found_again_however_many(database: Database) -> None:
    store = LedgerStore(database, "journal-1")
    engine = Engine(store.checkpoint())
    vm_ids = [f"vm-{number}" for number in range(1_203)]
    fold(engine, *[sample(vm_id, 0, cpu=1) for vm_id in vm_ids])
    # A second session for one, and an end for another.
    fold(engine, VmStarted("vm-7", "globex-not", EPOCH), VmStopped("vm-7", EPOCH + NANOS))
    fold(engine, VmStarted("vm-7", "acme", EPOCH + 5 * NANOS), VmStopped("vm-8", EPOCH + NANOS))
    flush(engine, store)
    newest = {row[0]: row for row in store.newest_sessions([*vm_ids, "vm-unknown"])}
    assert newest.keys() == set(vm_ids)
    assert (newest["vm-7"][1], newest["vm-7"][6]) == (2, None)
    assert newest["vm-8"][6] == EPOCH + NANOS
    running = [row[0] for rows in store.running_sessions() for row in rows]
    assert sorted(running) == sorted(set(vm_ids) - {"vm-8"})


# --- the file ------------------------------------------------------------------------


def test_the_migrations_make_the_tables_that_the_code_writes(database: Database) -> None:
    with database.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_every_commit_is_synced(database: Database) -> None:
    with database.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_a_reader_sees_the_last_commit_and_writes_nothing(database: Database, path: Path) -> None:
    store = LedgerStore(database, "journal-1")
    engine = Engine(store.checkpoint())
    fold(engine, sample("vm-1", 0))
    reader = open_for_reading(path)
    assert dump(reader)["sessions"] == []
    flush(engine, store)
    assert [row[0] for row in dump(reader)["sessions"]] == ["vm-1"]
    with reader.connect() as connection, pytest.raises(OperationalError, match="readonly"):
        connection.exec_driver_sql("DELETE FROM sessions")
    reader.dispose()


def test_a_ledger_that_is_not_there_is_not_made_by_reading(path: Path) -> None:
    with pytest.raises(StorageError, match=r"no ledger at .*UNKEY_BILLAGED_DATA_DIR"):
        open_for_reading(path)
    assert not path.exists()


@pytest.mark.parametrize("opens", [open_for_writing, open_for_reading])
def test_a_ledger_of_an_unknown_version_is_refused(path: Path, opens: object) -> None:
    open_for_writing(path).dispose()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'from-the-future'")
    with pytest.raises(StorageError, match=r"schema from-the-future.*Use the version of billaged that wrote it"):
        opens(path)  # type: ignore[operator]


@pytest.mark.parametrize("opens", [open_for_writing, open_for_reading])
def test_a_database_that_is_no_ledger_is_refused_and_left_alone(tmp_path: Path, opens: object) -> None:
    path = tmp_path / "journal.db"
    SqliteJournal(path).close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match="is no ledger"):
        opens(path)  # type: ignore[operator]
    assert path.read_bytes() == before
