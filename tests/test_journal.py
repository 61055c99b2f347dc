"""One suite for every journal driver, then what only the file has to promise."""

from __future__ import annotations

import random
import sqlite3
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from journal_rows import append

from billaged.intake.journal import Journal, JournalRow, entry_of
from billaged.intake.memory import MemoryJournal
from billaged.intake.sqlite import SqliteJournal
from billaged.model.errors import DurabilityLost, StorageError
from billaged.model.records import FoldRules, Kind, Tick
from billaged.wire.codec import encode_own


def rows(first: int, last: int) -> list[JournalRow]:
    """Rows with any bytes: a journal does not look into them."""
    chance = random.Random(first)
    return [
        JournalRow(sequence, Kind.METRICS, 1_000 + sequence, f"caller-{sequence % 3}", chance.randbytes(sequence % 50))
        for sequence in range(first, last + 1)
    ]


def plain(found: Iterable[JournalRow]) -> list[JournalRow]:
    """The rows without their chains."""
    return [row._replace(chain=b"") for row in found]


def read(journal: Journal, after: int) -> list[JournalRow]:
    return [row for chunk in journal.read(after) for row in chunk]


# --- every driver --------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "memory"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journal]:
    makers: dict[str, Callable[[], Journal]] = {
        "sqlite": lambda: SqliteJournal(tmp_path / "journal.db"),
        "memory": MemoryJournal,
    }
    made = makers[request.param]()
    yield made
    made.close()


def test_a_new_journal_is_empty_and_has_a_name(journal: Journal) -> None:
    assert (journal.position, journal.pruned, journal.newest_received_ns()) == (0, 0, 0)
    assert str(uuid.UUID(journal.journal_id)) == journal.journal_id
    assert read(journal, 0) == []


@pytest.mark.parametrize("size", [1, 2, 511, 512, 513, 5_000])
def test_it_holds_what_was_appended_and_not_pruned(journal: Journal, size: int) -> None:
    append(journal, rows(1, size))
    append(journal, rows(size + 1, size + 3))
    assert journal.position == size + 3
    assert journal.newest_received_ns() == 1_000 + size + 3
    # A journal that keeps nothing has pruned everything: the law is the same.
    assert plain(read(journal, journal.pruned)) == [*rows(1, size), *rows(size + 1, size + 3)][journal.pruned :]
    assert read(journal, journal.position) == []


def test_pruning_never_moves_the_position(journal: Journal) -> None:
    append(journal, rows(1, 10))
    journal.prune(4)
    assert journal.pruned >= 4
    assert journal.position == 10
    journal.prune(2)
    assert journal.pruned >= 4, "nothing comes back"
    journal.prune(99)
    assert (journal.pruned, journal.position) == (10, 10)
    append(journal, rows(11, 12))
    assert journal.position == 12


# --- the file ------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def file_journal(path: Path) -> Iterator[SqliteJournal]:
    made = SqliteJournal(path)
    yield made
    made.close()


def test_it_is_the_same_journal_after_it_was_closed(path: Path) -> None:
    with closing(SqliteJournal(path)) as journal:
        append(journal, rows(1, 20))
        journal.prune(5)
        name = journal.journal_id
    with closing(SqliteJournal(path)) as journal:
        assert (journal.journal_id, journal.position, journal.pruned) == (name, 20, 5)
        assert plain(read(journal, 5)) == rows(1, 20)[5:]
        assert journal.newest_received_ns() == 1_020


def test_a_number_is_never_given_twice_even_when_all_rows_have_left(path: Path) -> None:
    with closing(SqliteJournal(path)) as journal:
        append(journal, rows(1, 7))
        journal.prune(7)
    with closing(SqliteJournal(path)) as journal:
        assert journal.position == 7
        assert read(journal, 0) == []
        append(journal, rows(8, 8))
        assert [row.sequence for row in read(journal, 0)] == [8]


def test_a_group_is_there_whole_or_not_at_all(file_journal: SqliteJournal) -> None:
    """The last row of the group is one that is there already: none of the others may stay."""
    append(file_journal, rows(1, 3))
    with pytest.raises(DurabilityLost, match="cannot be committed"):
        file_journal.append([*rows(4, 600), *rows(1, 1)])
    assert file_journal.position == 3
    assert plain(read(file_journal, 0)) == rows(1, 3)


def test_what_is_appended_is_committed_for_other_connections_at_once(file_journal: SqliteJournal, path: Path) -> None:
    reading = file_journal.read(0)
    append(file_journal, rows(1, 5))
    assert plain(next(reading)) == rows(1, 5)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM journal").fetchone() == (5,)


def test_every_commit_is_synced(file_journal: SqliteJournal) -> None:
    """WAL with synchronous=FULL: less would lose acknowledged rows with the power."""
    connection = file_journal._connection
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_pruning_goes_a_little_at_a_time(file_journal: SqliteJournal) -> None:
    append(file_journal, rows(1, 5_000))
    steps = []
    while file_journal.pruned < 4_500:
        file_journal.prune(4_500)
        steps.append(file_journal.pruned)
        assert read(file_journal, 0)[0].sequence == file_journal.pruned + 1
    assert len(steps) > 1
    assert steps[-1] == 4_500


def test_the_reader_reads_while_rows_leave(file_journal: SqliteJournal) -> None:
    """Chunks are transactions of their own: what left meanwhile is not in them, and nothing is there twice."""
    append(file_journal, rows(1, 10_000))
    reading = file_journal.read(0)
    seen = [row.sequence for row in next(reading)]
    file_journal.prune(1_000)
    seen += [row.sequence for chunk in reading for row in chunk]
    assert seen == list(range(1, 10_001))


@pytest.mark.parametrize(
    ("deleted", "problem"),
    [
        ("sequence = 150", "row 150 is missing"),
        ("sequence BETWEEN 5000 AND 5002", "rows 5000 to 5002 are missing"),
        ("sequence = 101", "row 101 is missing"),
    ],
)
def test_a_row_that_was_acknowledged_and_is_not_there_is_named(path: Path, deleted: str, problem: str) -> None:
    with closing(SqliteJournal(path)) as journal:
        append(journal, rows(1, 6_000))
        journal.prune(50)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"DELETE FROM journal WHERE {deleted}")
        connection.commit()
    with closing(SqliteJournal(path)) as journal:
        with pytest.raises(StorageError, match=rf"{problem}, though acknowledged.*Restore a backup.*journal verify"):
            read(journal, 100)
        # What is before the hole does not matter to who asks for what comes after it.
        assert read(journal, 6_000) == []
        with closing(sqlite3.connect(path)) as connection:
            left = [JournalRow(*row) for row in connection.execute("SELECT * FROM journal WHERE sequence > 100")]
        assert [row for chunk in journal.read(100, whole=False) for row in chunk] == left


@pytest.mark.parametrize(
    ("deleted", "problem"),
    [
        ("sequence = 600", "row 600 is missing"),
        ("sequence > 596", "rows 597 to 600 are missing"),
        ("sequence > 0", "rows 51 to 600 are missing"),
    ],
)
def test_a_journal_whose_end_is_missing_is_not_gone_on_with(path: Path, deleted: str, problem: str) -> None:
    """Nothing could be chained to it."""
    with closing(SqliteJournal(path)) as journal:
        append(journal, rows(1, 600))
        journal.prune(50)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"DELETE FROM journal WHERE {deleted}")
        connection.commit()
    with pytest.raises(StorageError, match=f"{problem}, though acknowledged"):
        SqliteJournal(path)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM about",
        "UPDATE about SET pruned = 'many'",
        "UPDATE journal SET received_ns = 'noon' WHERE sequence = 3",
        "UPDATE journal SET caller = x'ff' WHERE sequence = 2",
        "UPDATE journal SET caller = CAST(x'ff' AS TEXT) WHERE sequence = 2",
        "UPDATE journal SET payload = 'text' WHERE sequence = 2",
    ],
)
def test_what_was_changed_by_hand_is_named(path: Path, statement: str) -> None:
    with closing(SqliteJournal(path)) as journal:
        append(journal, [row._replace(kind=Kind.TICK, payload=encode_own(Tick(1, 2, False))) for row in rows(1, 3)])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()
    with pytest.raises(StorageError, match=r"damaged|cannot be read"), closing(SqliteJournal(path)) as journal:
        journal.newest_received_ns()
        for row in read(journal, 0):
            entry_of(row)


def test_a_file_that_is_no_journal_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE mine (x)")
    with pytest.raises(StorageError, match="holds tables but is no journal"):
        SqliteJournal(path)


def test_a_journal_of_another_version_is_refused(path: Path) -> None:
    SqliteJournal(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageError, match=r"schema 99.*Use the version of billaged that wrote it"):
        SqliteJournal(path)


def test_bytes_that_are_no_database_are_refused(path: Path) -> None:
    path.write_bytes(b"not a database" * 200)
    with pytest.raises(StorageError, match="Restore a backup"):
        SqliteJournal(path)


def test_it_keeps_the_mode_that_the_umask_gives(path: Path) -> None:
    """The data directory sets the umask; the file and its WAL must not be wider than that."""
    path.touch(mode=0o600)
    with closing(SqliteJournal(path)) as journal:
        append(journal, rows(1, 1))
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes.keys() >= {"journal.db", "journal.db-wal"}
    assert set(modes.values()) == {0o600}


# --- rows to entries -----------------------------------------------------------------


@pytest.mark.parametrize("record", [Tick(5, 6, True), FoldRules(max_cores=3)])
def test_the_daemons_own_records_come_back_as_they_were(record: Tick | FoldRules) -> None:
    kind = Kind.TICK if isinstance(record, Tick) else Kind.RULES
    entry = entry_of(JournalRow(1, kind, 2, "", encode_own(record)))
    assert (entry.record, entry.kind, entry.received_ns) == (record, kind, 2)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Kind.METRICS, b"\xff\xff"),
        (77, b""),
        (Kind.TICK, b"{}"),
        (Kind.TICK, b"no json"),
        (Kind.RULES, b'{"cores": 1}'),
    ],
)
def test_a_row_that_cannot_be_decoded_names_itself(kind: int, payload: bytes) -> None:
    with pytest.raises(StorageError, match=r"journal row 12 .*restore it from a backup"):
        entry_of(JournalRow(12, kind, 0, "", payload))
