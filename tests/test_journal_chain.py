"""The chain through the journal: what it finds, what only a head kept elsewhere finds, and what a start refuses."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import random
import shutil
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from click.testing import CliRunner
from daemon_calls import batch as batch_message
from daemon_process import DaemonProcess
from intake_stages import NoSink
from journal_rows import append
from report_fixtures import DAY, GIB, DataDir, at, batch, data_dir
from sqlalchemy import create_engine

from billaged.aggregator.worker import Aggregator
from billaged.cli.errors import exit_code
from billaged.cli.main import billaged
from billaged.daemon import SystemClock
from billaged.directory import DataDirectory
from billaged.intake.chain import Follower, next_chain, parse_head, rows_after, start_of
from billaged.intake.journal import Beginning, Head, JournalRow, entry_of
from billaged.intake.journal_file import JournalFile
from billaged.intake.memory import MemoryJournal
from billaged.intake.segments import Segments
from billaged.intake.sqlite import SqliteJournal
from billaged.ledger.database import _scripts, open_for_reading
from billaged.ledger.dump import dump
from billaged.model.errors import BillagedError, StorageError
from billaged.model.records import FoldRules, Kind, Record, Tick
from billaged.model.time import MINUTE_NANOS, NANOS
from billaged.storage import open_stores

START_NS = at("10:00:00")
RECEIVED_LONG_AFTER = 2**62


def samples(first: int, last: int, vm_id: str = "a") -> list[Record]:
    """A sample a minute, of these minutes."""
    return [batch(vm_id, (START_NS + at_ * MINUTE_NANOS, GIB, at_ * NANOS)) for at_ in range(first, last + 1)]


RECORDS: list[Record] = [FoldRules(), Tick(START_NS, 0, False), *samples(1, 38)]
ROWS = len(RECORDS)
LEFT = 20


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout, and what stderr or the error says."""
    result = CliRunner().invoke(billaged, [str(argument) for argument in arguments])
    if isinstance(result.exception, BillagedError):
        return exit_code(result.exception), result.stdout, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def verify(directory: Path, *heads: str) -> tuple[int, str, str]:
    given = [part for head in heads for part in ("--head", head)]
    return run("journal", "verify", *given, "--data-dir", directory)


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount, statement
        connection.commit()


def head_of(directory: Path) -> str:
    return run("journal", "head", "--data-dir", directory)[1].strip()


# --- the format ----------------------------------------------------------------------


def reference(previous: bytes, row: JournalRow) -> bytes:
    """The format as the documentation has it, written a second time."""
    caller = row.caller.encode()
    numbers = struct.pack("<qqqQQ", row.sequence, row.kind, row.received_ns, len(caller), len(row.payload))
    return hashlib.blake2b(b"billaged journal 1\n" + previous + numbers + caller + row.payload, digest_size=32).digest()


def test_the_format_is_what_is_in_other_peoples_hands() -> None:
    """Fixed for ever: heads that were kept must hold."""
    start = start_of("00000000-0000-4000-8000-000000000000")
    assert (
        start
        == hashlib.blake2b(b"billaged journal 1 start\n00000000-0000-4000-8000-000000000000", digest_size=32).digest()
    )
    rows = rows_after(Head(0, start), [(1, 2, "spiffe://é", b"payload"), (64, -5, "", b"")])
    first = reference(start, rows[0])
    assert [row.chain for row in rows] == [first, reference(first, rows[1])]
    assert rows[1].chain.hex() == "3cb9c91b435f18e033df675743f7a4ebeffb2928033c0cef4c86ab95ea375724"


@pytest.mark.parametrize(
    "changed",
    [
        {"sequence": 8},
        {"kind": 2},
        {"received_ns": 4},
        {"caller": "b"},
        {"payload": b"q"},
        # The same bytes one after the other, cut elsewhere.
        {"caller": "ap", "payload": b""},
        {"caller": "", "payload": b"ap"},
    ],
)
def test_each_field_and_each_boundary_counts(changed: dict[str, object]) -> None:
    row = JournalRow(7, 1, 3, "a", b"p")
    previous = start_of("x")
    assert next_chain(previous, *row[:5]) != next_chain(previous, *row._replace(**changed)[:5])  # type: ignore[arg-type]
    assert next_chain(previous, *row[:5]) != next_chain(start_of("y"), *row[:5])


def test_a_follower_takes_nothing_that_does_not_go_on() -> None:
    beginning = Beginning(2, start_of("x"))
    old = [JournalRow(at_, 1, 0, "", b"") for at_ in (1, 2)]
    rows = [*old, *rows_after(Head(*beginning), [(1, 0, "", b"a"), (1, 0, "", b"b"), (1, 0, "", b"c")])]
    follower = Follower(beginning)
    assert all(map(follower.goes_on, rows))
    # From the middle the first one is taken as it is; a jump is the same.
    follower = Follower(beginning)
    assert [follower.goes_on(row) for row in (rows[3], rows[4], rows[3], rows[2])] == [True] * 4
    for wrong in (
        rows[3]._replace(chain=b""),
        rows[3]._replace(chain=b"short"),
        rows[3]._replace(payload=b"x"),
        rows[3]._replace(caller="\ud800"),
        rows[3]._replace(kind=2**70),
        rows[3]._replace(chain="text"),  # type: ignore[arg-type]
    ):
        assert not Follower(beginning, Head(3, rows[2].chain)).goes_on(wrong)
    assert not Follower(beginning).goes_on(rows[1]._replace(chain=rows[2].chain)), "there was no chain yet"
    assert not Follower(beginning).goes_on(rows[2]._replace(chain=rows[3].chain))


@pytest.mark.parametrize("text", ["", "1", "x:" + "0" * 64, "1:" + "0" * 63, "-1:" + "0" * 64, "01:" + "0" * 64])
def test_what_is_no_head_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no head"):
        parse_head(text)
    code, _, err = verify(data_dir(tmp_path, *RECORDS), text)
    assert code == 2
    assert "is no head" in err


def test_a_head_is_read_as_it_is_printed() -> None:
    head = Head(12, bytes(range(32)))
    assert parse_head(f" {head}\n".upper()) == head


# --- the drivers ---------------------------------------------------------------------


def rows(first: int, last: int) -> list[JournalRow]:
    chance = random.Random(first)
    return [JournalRow(at_, 1, 1_000 + at_, f"c{at_}", chance.randbytes(at_ % 50)) for at_ in range(first, last + 1)]


def test_both_drivers_keep_the_head(tmp_path: Path) -> None:
    for journal in (SqliteJournal(tmp_path / "journal.db"), MemoryJournal()):
        with closing(journal):
            assert journal.head == Head(0, start_of(journal.journal_id))
            assert journal.chain_at(0) == journal.head.chain
            stored = append(journal, rows(1, 700))
            assert journal.head == Head(700, stored[-1].chain)
            assert journal.chain_at(700) == stored[-1].chain
            journal.prune(700)
            assert journal.head == Head(700, stored[-1].chain)
            more = append(journal, rows(701, 702))
            assert journal.head == Head(702, more[-1].chain)


def test_the_chain_goes_on_over_closing_and_pruning(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with closing(SqliteJournal(path)) as journal:
        stored = append(journal, rows(1, 50))
        journal.prune(20)
        assert [journal.chain_at(at_) for at_ in (20, 21, 50)] == [stored[at_ - 1].chain for at_ in (20, 21, 50)]
        with pytest.raises(StorageError, match="row 19 is missing"):
            journal.chain_at(19)
    with closing(SqliteJournal(path)) as journal:
        assert journal.head == Head(50, stored[-1].chain)
        stored += append(journal, rows(51, 60))
        assert [row for chunk in journal.read(20) for row in chunk] == stored[20:]
        journal.prune(60)
    with closing(SqliteJournal(path)) as journal:
        assert journal.head == Head(60, stored[-1].chain)


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE journal SET payload = x'00' WHERE sequence = 30", "row 30 was changed"),
        ("UPDATE journal SET chain = zeroblob(32) WHERE sequence = 30", "row 30 was changed"),
        ("UPDATE journal SET chain = NULL WHERE sequence = 30", "row 30 was changed"),
        ("UPDATE journal SET chain = NULL WHERE sequence = 50", "damaged: the chain of row 50 is None"),
        ("UPDATE journal SET caller = 'me' WHERE sequence = 50", "row 50 was changed"),
        ("UPDATE about SET chained_after = 60", "its chain begins after row 60, its rows end at 50"),
        ("UPDATE about SET chained_after = 25", "row 21 was changed"),
        ("UPDATE about SET pruned_chain = zeroblob(32)", "row 21 was changed"),
        ("UPDATE about SET journal_id = 'x', chained_after = 20", "row 21 was changed"),
    ],
)
def test_a_start_does_not_fold_what_was_changed(tmp_path: Path, statement: str, problem: str) -> None:
    """The daemon folds what it reads so from the journal's end: a bit that flipped there is never billed."""
    path = tmp_path / "journal.db"
    with closing(SqliteJournal(path)) as journal:
        append(journal, rows(1, 50))
        journal.prune(20)
    change(path, statement)
    with pytest.raises(StorageError, match=rf"{problem}.*Restore a backup"), closing(SqliteJournal(path)) as journal:
        list(journal.read(20))


# --- a journal of before -------------------------------------------------------------

FIRST_SCHEMA = """
CREATE TABLE journal (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, kind INTEGER NOT NULL, received_ns INTEGER NOT NULL,
    caller TEXT NOT NULL, payload BLOB NOT NULL
);
CREATE TABLE about (one INTEGER PRIMARY KEY CHECK (one = 1), journal_id TEXT NOT NULL, pruned INTEGER NOT NULL);
PRAGMA user_version = 1;
"""


def as_of_before(directory: Path) -> None:
    """Take from a data directory what came with the chain."""
    path = directory / "journal.db"
    with closing(sqlite3.connect(path)) as connection:
        stored = connection.execute("SELECT sequence, kind, received_ns, caller, payload FROM journal").fetchall()
        about = connection.execute("SELECT one, journal_id, pruned FROM about").fetchone()
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(FIRST_SCHEMA)
        connection.executemany("INSERT INTO journal VALUES (?, ?, ?, ?, ?)", stored)
        connection.execute("INSERT INTO about VALUES (?, ?, ?)", about)
        connection.commit()
    change(directory / "ledger.db", "UPDATE checkpoint SET chain = NULL")


def carry_on(directory: Path, *records: Record) -> None:
    with closing(DataDir(directory)) as made:
        made.put(*records)


@pytest.mark.parametrize("pruned", [0, 7, ROWS])
def test_a_journal_of_before_gets_its_chain_from_the_next_row_on(tmp_path: Path, pruned: int) -> None:
    with closing(DataDir(tmp_path)) as made:
        made.put(*RECORDS)
        made.journal.prune(pruned)
    as_of_before(tmp_path)
    code, _, err = verify(tmp_path)
    assert code == 1
    assert "is of a version before this one. Start the daemon once" in err
    starts(tmp_path)
    code, out, err = verify(tmp_path)
    assert (code, err) == (0, "")
    assert f"begins after row {ROWS}: rows up to there prove nothing" in out
    start = head_of(tmp_path)
    carry_on(tmp_path, *samples(39, 45))
    starts(tmp_path)
    code, out, err = verify(tmp_path, start, head_of(tmp_path))
    assert (code, err) == (0, "")
    change(tmp_path / "journal.db", f"UPDATE journal SET caller = 'x' WHERE sequence = {ROWS + 1}")
    assert f"row {ROWS + 1} was changed" in verify(tmp_path)[2]


def test_segments_of_before_are_read_and_gone_on_from(tmp_path: Path) -> None:
    with closing(DataDir(tmp_path)) as made:
        made.put(*RECORDS)
        archive(made, LEFT, prune=False)
    for path in segments_of(tmp_path):
        edit(path, lambda lines: [{**line, "chain": None, "previous": None} for line in lines])
    as_of_before(tmp_path)
    starts(tmp_path)
    with closing(DataDir(tmp_path)) as made:
        made.put(*samples(39, 45))
        archive(made, ROWS + 5, after=LEFT)
        made.journal.prune(ROWS + 5)
    code, out, err = verify(tmp_path)
    assert (code, err) == (0, "")
    assert f"{ROWS + 5} rows in 2" in out
    assert run("journal", "replay", "--data-dir", tmp_path)[1].splitlines()[-1] == "equal"
    # Who takes the chain out of a line of now is seen.
    edit(segments_of(tmp_path)[-1], lambda lines: [*lines[:-2], {**lines[-2], "chain": None}, lines[-1]])
    assert f"row {ROWS + 4} in the segment" in verify(tmp_path)[2]


def test_a_ledger_of_before_is_brought_up_to_date(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'ledger.db'}")
    config, _ = _scripts()
    config.attributes["engine"] = engine
    command.upgrade(config, "0001")
    engine.dispose()
    carry_on(tmp_path, *RECORDS)
    assert verify(tmp_path)[0] == 0


# --- what a start refuses ------------------------------------------------------------


def fail(error: BaseException) -> None:
    raise error


def starts(directory: Path) -> None:
    """As the daemon does it: open both, fold what the ledger does not have, commit."""
    data = DataDirectory(directory)
    try:
        stores = open_stores(data)
        try:
            fold = Aggregator(stores.ledger, NoSink(), SystemClock(), NANOS, fail)
            fold.load()
            fold.replay([entry_of(row) for row in rows] for rows in stores.journal.read(fold.position))
        finally:
            stores.close()
    finally:
        data.release()


def bill_of(directory: Path) -> dict[str, list[tuple[object, ...]]]:
    engine = open_for_reading(directory / "ledger.db")
    try:
        return dump(engine)
    finally:
        engine.dispose()


@pytest.fixture
def lives(tmp_path: Path) -> Path:
    """A data directory as it was once, and two that went on from it, each its own way; the other one is ahead."""
    once = data_dir(folder(tmp_path / "once"), *RECORDS)
    for name, records in (("one", samples(39, 45)), ("other", samples(39, 50, "b"))):
        shutil.copytree(once, tmp_path / name)
        carry_on(tmp_path / name, *records)
    return tmp_path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def put_together(lives: Path, *, journal: str, ledger: str) -> Path:
    into = folder(lives / "together")
    shutil.copy(lives / journal / "journal.db", into)
    shutil.copy(lives / ledger / "ledger.db", into)
    return into


def test_a_journal_that_was_put_back_and_went_on_is_refused(lives: Path) -> None:
    """Its numbers fit, its rows are others."""
    directory = put_together(lives, journal="other", ledger="one")
    with pytest.raises(StorageError, match=f"row {ROWS + 7} of the journal is not the one that the ledger") as refused:
        starts(directory)
    assert "Put back the journal.db that the ledger was folded from" in refused.value.hint
    code, _, err = verify(directory)
    assert code == 1
    assert f"journal row {ROWS + 7} is not the one that the ledger has folded" in err


def test_an_older_journal_is_refused(lives: Path) -> None:
    directory = put_together(lives, journal="once", ledger="one")
    with pytest.raises(StorageError, match="the journal is older than the ledger") as refused:
        starts(directory)
    assert "Put back the newer journal.db. Where that is lost, 'billaged journal begin-anew'" in refused.value.hint


def test_a_journal_cut_to_nothing_is_refused_and_left_as_it_is(lives: Path) -> None:
    """SQLite would make a new one of it, and delete the WAL with the last rows."""
    directory = put_together(lives, journal="one", ledger="one")
    (directory / "journal.db").write_bytes(b"")
    (directory / "journal.db-wal").write_bytes(b"the last rows")
    with pytest.raises(StorageError, match="is empty, but there is a ledger"):
        starts(directory)
    assert (directory / "journal.db").stat().st_size == 0
    assert (directory / "journal.db-wal").read_bytes() == b"the last rows"
    (directory / "journal.db").unlink()
    with pytest.raises(StorageError, match=r"but no journal\.db beside it"):
        starts(directory)


def test_an_older_ledger_catches_up_and_is_exact(lives: Path) -> None:
    directory = put_together(lives, journal="other", ledger="once")
    starts(directory)
    assert bill_of(directory) == bill_of(lives / "other")
    assert verify(directory)[0] == 0


def test_an_older_ledger_whose_rows_have_left_is_refused(lives: Path) -> None:
    directory = put_together(lives, journal="other", ledger="once")
    with closing(SqliteJournal(directory / "journal.db")) as journal:
        journal.prune(ROWS + 1)
    with pytest.raises(StorageError, match="the ledger is older than what the journal still holds") as refused:
        starts(directory)
    assert "Put back a newer ledger.db" in refused.value.hint


def test_a_ledger_without_the_chain_it_should_have_is_refused(lives: Path) -> None:
    directory = lives / "one"
    change(directory / "ledger.db", "UPDATE checkpoint SET chain = NULL")
    with pytest.raises(StorageError, match="is not the one that the ledger has folded"):
        starts(directory)
    assert f"the ledger does not say which row {ROWS + 7} it has folded" in verify(directory)[2]
    change(directory / "ledger.db", "UPDATE checkpoint SET chain = x'00'")
    with pytest.raises(StorageError, match="checkpoint is damaged: its chain"):
        starts(directory)


# --- tampering with real files -------------------------------------------------------


def archive(made: DataDir, *lasts: int, after: int = 0, prune: bool = True) -> None:
    """Rows up to each of these leave for a segment of their own."""
    segments = Segments(made.path / "segments")
    for last in lasts:
        assert segments.archive(made.journal, after, last, RECEIVED_LONG_AFTER) == last
        after = last
    if prune:
        made.journal.prune(after)


def segments_of(directory: Path) -> list[Path]:
    return sorted((directory / "segments").glob("*.gz"))


Line = dict[str, object]


def edit(path: Path, how: Callable[[list[Line]], list[Line]]) -> None:
    """Rewrite a segment's lines; a field of None is left out."""
    lines = how([json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()])
    kept = [{name: value for name, value in line.items() if value is not None} for line in lines]
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in kept).encode()))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Rows 1 to 20 in three segments, 21 to 40 in the journal, all of them in the ledger."""
    with closing(DataDir(tmp_path)) as made:
        made.put(*RECORDS)
        archive(made, 6, 13, LEFT)
    return tmp_path


def test_what_was_left_alone_is_whole(directory: Path) -> None:
    code, out, err = verify(directory, head_of(directory))
    assert (code, err) == (0, "")
    shown = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert shown["rows"] == f"{ROWS - LEFT}, from {LEFT + 1} to {ROWS}"
    assert shown["segments"] == f"{LEFT} rows in 3"
    assert shown["head"] == head_of(directory)


@pytest.mark.parametrize(
    ("statements", "problem"),
    [
        (["UPDATE journal SET payload = (SELECT payload FROM journal WHERE sequence = 31) WHERE sequence = 30"], "30"),
        (["UPDATE journal SET caller = 'somebody' WHERE sequence = 30"], "30"),
        (["UPDATE journal SET received_ns = received_ns + 1 WHERE sequence = 30"], "30"),
        # Of two rows that change their places both are found.
        (
            [
                "UPDATE journal SET sequence = 99 WHERE sequence = 25",
                "UPDATE journal SET sequence = 25 WHERE sequence = 29",
                "UPDATE journal SET sequence = 29 WHERE sequence = 99",
                "UPDATE sqlite_sequence SET seq = 40",
            ],
            "25",
        ),
        # With a chain of its own the row holds, the next one does not.
        (["UPDATE journal SET chain = zeroblob(32) WHERE sequence = 30"], "30"),
        (["UPDATE journal SET chain = NULL WHERE sequence = 30"], "30"),
    ],
)
def test_a_changed_row_is_named(directory: Path, statements: list[str], problem: str) -> None:
    change(directory / "journal.db", *statements)
    code, _, err = verify(directory)
    assert code == 1
    assert err.startswith(f"journal row {problem} was changed: it does not go on from the row before it")


@pytest.mark.parametrize(
    ("statements", "problem"),
    [
        (["DELETE FROM journal WHERE sequence = 30"], "journal row 30 is missing"),
        (["DELETE FROM journal WHERE sequence > 36"], "journal rows 37 to 40 are missing"),
        (["DELETE FROM journal WHERE sequence = 21"], "journal row 21 is missing"),
        (
            ["DELETE FROM journal WHERE sequence > 36", "UPDATE sqlite_sequence SET seq = 36"],
            "the ledger has folded up to journal row 40, but the journal holds 21 to 36",
        ),
        # The gap closed by new numbers.
        (
            [
                "DELETE FROM journal WHERE sequence = 30",
                "UPDATE journal SET sequence = sequence - 1 WHERE sequence > 30",
                "UPDATE sqlite_sequence SET seq = 39",
            ],
            "journal row 30 was changed",
        ),
        (["DELETE FROM about"], "it does not say which it is"),
        # More is said to have left than is in segments.
        (
            ["UPDATE about SET pruned = 25", "DELETE FROM journal WHERE sequence <= 25"],
            "rows 21 to 25 are in no segment",
        ),
        (["UPDATE about SET pruned_chain = NULL"], "the journal does not say what row 21 goes on from"),
        (["UPDATE about SET pruned_chain = zeroblob(32)"], "row 21 was changed"),
        (["UPDATE about SET chained_after = 40"], "row 21 was changed"),
        (["UPDATE about SET chained_after = 41"], "damaged: its chain begins after row 41"),
    ],
)
def test_what_was_taken_away_is_named(directory: Path, statements: list[str], problem: str) -> None:
    change(directory / "journal.db", *statements)
    code, _, err = verify(directory)
    assert code == 1
    assert problem in err


def edited(how: Callable[[list[Line]], list[Line]]) -> Callable[[Path], None]:
    return lambda path: edit(path, how)


def flip_middle(path: Path) -> None:
    packed = bytearray(path.read_bytes())
    packed[len(packed) // 2] ^= 1
    path.write_bytes(packed)


@pytest.mark.parametrize(
    ("nth", "how", "problem"),
    [
        (
            1,
            edited(lambda lines: [*lines[:2], {**lines[2], "caller": "x"}, *lines[3:]]),
            "row 9 in the segment",
        ),
        (
            0,
            edited(lambda lines: [{**lines[0], "received_ns": 1}, *lines[1:]]),
            "row 1 in the segment",
        ),
        # The first line of a segment has what it goes on from beside it.
        (
            1,
            edited(lambda lines: [{**lines[0], "received_ns": 1}, *lines[1:]]),
            "row 7 in the segment",
        ),
        (1, edited(lambda lines: [*lines[:2], *lines[3:]]), "row 9 is missing in the segment"),
        (1, edited(lambda lines: lines[:-2]), "rows 12 to 13 are missing: the segment"),
        (2, edited(lambda lines: lines[:-2]), "rows 19 to 20 are missing: the segment"),
        (
            1,
            edited(lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]]),
            "has row 9 after row 10",
        ),
        (1, edited(lambda lines: [{**line, "chain": None} for line in lines]), "row 7 in the segment"),
        (1, lambda path: path.write_bytes(path.read_bytes()[:-20]), "is damaged"),
        (1, flip_middle, "is damaged"),
        (1, Path.unlink, "rows 7 to 13 are in no segment"),
        (2, Path.unlink, "rows 14 to 20 are in no segment"),
    ],
    ids=[
        "caller",
        "first row",
        "first of its file",
        "a line less",
        "shorter",
        "the last one shorter",
        "swapped",
        "no chains",
        "cut",
        "flipped",
        "removed",
        "the last one removed",
    ],
)
def test_a_segment_that_was_tampered_with_is_named(
    directory: Path, nth: int, how: Callable[[Path], object], problem: str
) -> None:
    path = segments_of(directory)[nth]
    how(path)
    code, _, err = verify(directory)
    assert code == 1
    assert problem in err
    assert path.name in err or "in no segment" in err
    # Nothing is computed from it either.
    assert run("journal", "replay", "--data-dir", directory)[0] == 1


def test_without_its_oldest_segment_a_journal_looks_as_after_the_retention(directory: Path) -> None:
    """Documented: only who has kept a head of it can ask for it."""
    heads = [head_at(directory, 5), head_at(directory, 6), head_at(directory, 7)]
    segments_of(directory)[0].unlink()
    assert verify(directory)[0] == 0
    assert verify(directory, *heads[1:])[0] == 0, "the second one says what it goes on from"
    code, _, err = verify(directory, heads[0])
    assert (code, err) == (1, "row 5, which --head stands for, is not there to compare")


def head_at(directory: Path, sequence: int) -> str:
    """The head that was printed when this row was the last one."""
    for path in segments_of(directory):
        for line in gzip.decompress(path.read_bytes()).splitlines():
            fields = json.loads(line)
            if fields["sequence"] == sequence:
                return f"{sequence}:{fields['chain']}"
    with closing(SqliteJournal(directory / "journal.db")) as journal:
        return str(Head(sequence, journal.chain_at(sequence)))


@pytest.mark.parametrize("seed", range(12))
def test_no_change_of_any_byte_goes_unseen(directory: Path, seed: int) -> None:
    """Any row, any column; the journal is left as it was in between."""
    chance = random.Random(seed)
    path = directory / "journal.db"
    whole = path.read_bytes()
    with closing(JournalFile(path)) as file:
        stored = [row for chunk in file.rows(0, ROWS) for row in chunk]
    for _ in range(5):
        row = chance.choice(stored)
        name = chance.choice(("kind", "received_ns", "caller", "payload", "chain"))
        value = getattr(row, name)
        if isinstance(value, int):
            value ^= 1 << chance.randrange(63)
        elif isinstance(value, str):
            value += chance.choice("ax/")
        else:
            place = chance.randrange(len(value))
            value = value[:place] + bytes([value[place] ^ (1 << chance.randrange(8))]) + value[place + 1 :]
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"UPDATE journal SET {name} = ? WHERE sequence = ?", (value, row.sequence))
            connection.commit()
        code, _, err = verify(directory)
        assert code == 1, (row.sequence, name)
        assert f"row {row.sequence}" in err, (row.sequence, name)
        path.write_bytes(whole)
        assert verify(directory)[0] == 0


# --- who knows the format ------------------------------------------------------------


def forge(directory: Path, sequence: int, received_ns: int, *, ledger_too: bool = False) -> None:
    """Change a row and compute every chain after it anew, as somebody would who may write the files."""
    path = directory / "journal.db"
    with closing(JournalFile(path)) as file:
        stored = [row for chunk in file.rows(sequence - 1, ROWS) for row in chunk]
    with closing(SqliteJournal(path)) as journal:
        before = Head(sequence - 1, journal.chain_at(sequence - 1))
    forged = rows_after(before, [(row.kind, received_ns, row.caller, row.payload) for row in stored[:1]])
    forged += rows_after(Head(sequence, forged[0].chain), [row[1:5] for row in stored[1:]])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM journal WHERE sequence >= ?", (sequence,))
        connection.executemany("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?)", forged)
        connection.commit()
    if ledger_too:
        with closing(sqlite3.connect(directory / "ledger.db")) as connection:
            connection.execute("UPDATE checkpoint SET chain = ?", (forged[-1].chain,))
            connection.commit()


def test_a_forged_chain_is_not_the_ledgers(directory: Path) -> None:
    forge(directory, 30, 1)
    code, _, err = verify(directory)
    assert code == 1
    assert err == f"journal row {ROWS} is not the one that the ledger has folded: it or one before it was changed"
    with pytest.raises(StorageError, match="is not the one that the ledger has folded"):
        starts(directory)


def test_a_chain_that_was_taken_away_is_missed_by_the_ledger(directory: Path) -> None:
    """As if an earlier version had written all of it."""
    for path in segments_of(directory):
        edit(path, lambda lines: [{**line, "chain": None, "previous": None} for line in lines])
    kept = [head_of(directory), head_at(directory, 30)]
    change(directory / "journal.db", f"UPDATE about SET chained_after = {ROWS}", "UPDATE journal SET chain = NULL")
    code, _, err = verify(directory)
    assert (code, err.partition(":")[0]) == (1, f"journal row {ROWS} is not the one that the ledger has folded")
    with pytest.raises(StorageError, match="is not the one that the ledger has folded"):
        starts(directory)
    # The ledger's too: it is said where the chain begins, and a head that was kept knows better.
    change(directory / "ledger.db", "UPDATE checkpoint SET chain = NULL")
    code, out, _ = verify(directory)
    assert code == 0
    assert f"begins after row {ROWS}: rows up to there prove nothing" in out
    for head in kept:
        assert "is not the one that --head" in verify(directory, head)[2]


def test_a_forged_chain_and_ledger_are_found_by_a_head_that_was_kept(directory: Path) -> None:
    """And by nothing else: that is documented."""
    before, kept = head_at(directory, 29), head_of(directory)
    forge(directory, 30, 1, ledger_too=True)
    assert verify(directory)[0] == 0
    starts(directory)
    assert verify(directory, before)[0] == 0, "what came before is as it was"
    code, _, err = verify(directory, before, kept)
    assert code == 1
    assert f"journal row {ROWS} is not the one that --head {ROWS}:" in err


def test_an_end_that_was_cut_off_cleanly_is_found_by_a_head_that_was_kept(directory: Path) -> None:
    """Rows that were acknowledged and are not in the ledger yet: the journal alone does not miss them."""
    with closing(DataDir(directory)) as made:
        made.put(*samples(39, 45), fold=False)
    kept = head_of(directory)
    change(
        directory / "journal.db",
        f"DELETE FROM journal WHERE sequence > {ROWS}",
        f"UPDATE sqlite_sequence SET seq = {ROWS}",
    )
    assert verify(directory)[0] == 0
    code, _, err = verify(directory, kept)
    assert (code, err) == (
        1,
        f"the journal is truncated: it ends at row {ROWS}, before row {ROWS + 7}, which --head stands for",
    )


def test_forged_segments_do_not_lead_to_the_journal(directory: Path) -> None:
    """The journal has kept what its first row goes on from."""

    def forged(lines: list[Line]) -> list[Line]:
        before = bytes.fromhex(str(lines[0]["previous"]))
        sequence = int(str(lines[0]["sequence"]))
        records = [
            (int(str(line["kind"])), 5, str(line["caller"]), base64.b64decode(str(line["payload"]))) for line in lines
        ]
        rows = rows_after(Head(sequence - 1, before), records)
        return [{**line, "received_ns": 5, "chain": row.chain.hex()} for line, row in zip(lines, rows, strict=True)]

    edit(segments_of(directory)[-1], forged)
    code, _, err = verify(directory)
    assert (code, err) == (
        1,
        f"journal row {LEFT} is not the one that the journal goes on from: it or one before it was changed",
    )
    # And in the middle not to the segment after.
    edit(segments_of(directory)[1], forged)
    assert "journal row 13 is not the one that the segment" in verify(directory)[2]


def test_another_journals_head_is_not_this_ones(directory: Path) -> None:
    stranger = data_dir(folder(directory / "stranger"), *RECORDS)
    assert head_of(stranger) != head_of(directory)
    assert verify(directory, head_of(stranger))[0] == 1


# --- heads ---------------------------------------------------------------------------


def test_the_head_is_printed_for_keeping(directory: Path) -> None:
    code, out, err = run("journal", "head", "--data-dir", directory)
    assert (code, err) == (0, "")
    head = parse_head(out)
    assert head.sequence == ROWS
    fields = json.loads(run("journal", "head", "--json", "--data-dir", directory)[1])
    with closing(JournalFile(directory / "journal.db")) as file:
        assert fields == {"journal_id": file.journal_id, "sequence": ROWS, "chain": head.chain.hex()}
    change(directory / "journal.db", "DELETE FROM journal WHERE sequence > 38")
    code, _, err = run("journal", "head", "--data-dir", directory)
    assert code == 1
    assert "its rows end before row 39, though 40 were given" in err


def test_a_journal_without_rows_has_a_head_too(tmp_path: Path) -> None:
    """What its first row will go on from: it pins which journal it is."""
    with closing(DataDir(tmp_path)):
        kept = head_of(tmp_path)
        assert kept.startswith("0:")
    assert verify(tmp_path, kept)[0] == 0
    carry_on(tmp_path, *RECORDS)
    assert verify(tmp_path, kept)[0] == 0


def test_heads_may_be_anywhere(directory: Path) -> None:
    heads = [head_at(directory, sequence) for sequence in (1, 6, 7, 13, LEFT, LEFT + 1, ROWS)]
    assert verify(directory, *heads)[0] == 0
    for head in heads:
        flipped = head[:-1] + ("0" if head[-1] != "0" else "1")
        code, _, err = verify(directory, flipped)
        assert code == 1
        assert f"journal row {head.partition(':')[0]} is not the one that --head" in err


def test_a_daemon_tells_its_head_and_its_rows_are_chained(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "var") as daemon:
        first = daemon.wait_for(lambda line: line["message"] == "journal head", "its head")
        for vm in range(20):
            assert daemon.call("SendMetricsBatch", batch_message(f"vm-{vm}", at("00:00:00", DAY))) is not None
        running = head_of(tmp_path / "var")
        assert verify(tmp_path / "var", running)[0] == 0, "while it runs"
        assert daemon.stop() == 0
        told = [line for line in daemon.log if line["message"] == "journal head"]
    assert {line["logger"] for line in told} == {"billaged.audit"}
    assert len(told) == 2
    last = f"{told[-1]['sequence']}:{told[-1]['chain']}"
    assert last == head_of(tmp_path / "var")
    code, out, err = verify(tmp_path / "var", f"{first['sequence']}:{first['chain']}", running, last)
    assert (code, err) == (0, "")
    assert "begins after" not in out
    with closing(JournalFile(tmp_path / "var" / "journal.db")) as file:
        found = [row for chunk in file.rows(0, file.end()) for row in chunk]
        assert first["journal_id"] == file.journal_id
    assert {row.kind for row in found} >= {Kind.METRICS, Kind.TICK, Kind.RULES}
    assert all(map(Follower(Beginning(0, start_of(file.journal_id))).goes_on, found))
