"""``billaged journal verify`` and ``replay``: damage and differences are found and named."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from report_fixtures import GIB, DataDir, at, batch, data_dir, payload_of

from billaged.aggregator import engine as fold
from billaged.cli.errors import exit_code
from billaged.cli.main import billaged
from billaged.intake import journal_file
from billaged.intake.segments import Segments
from billaged.ledger.database import open_for_reading
from billaged.ledger.dump import DUMPED, dump
from billaged.model.errors import BillagedError
from billaged.model.records import FoldRules, Heartbeat, PossibleGap, Record, Tick, VmStarted, VmStopped
from billaged.model.time import MINUTE_NANOS, NANOS
from billaged.reports import refold
from billaged.reports import replay as replaying

MARKED = batch("marked", (at("10:00:00"), GIB, 1_000))


def records() -> list[Record]:
    """Some of everything: each table of the ledger gets a row."""
    made: list[Record] = [FoldRules(), Tick(at("10:00:00"), 0, False), Heartbeat("host", ("a", "b"))]
    made += [MARKED, PossibleGap("a", at("10:00:00"), at("10:05:00")), VmStarted("a", "acme", at("10:00:00"))]
    for minute in range(0, 120, 5):
        made.append(batch("a", (at("10:00:00") + minute * MINUTE_NANOS, GIB + minute, minute * NANOS)))
        made.append(Tick(at("10:00:00") + minute * MINUTE_NANOS, 5 * MINUTE_NANOS, True))
    # Into a bucket that has closed; another customer's; late.
    made.append(batch("marked", (at("10:14:00"), GIB, 2_000), (at("12:30:00"), GIB, 3_000)))
    made.append(batch("a", (at("11:56:00"), GIB, 120 * NANOS), customer="bravo"))
    made.append(batch("a", (at("10:01:00"), GIB, 1)))
    made += [VmStopped("a", at("12:00:00")), VmStarted("a", "acme", at("12:01:00")), VmStopped("b", at("12:00:00"))]
    return made


RECORDS = records()
RECEIVED_LONG_AFTER = 2**62


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return data_dir(tmp_path, *RECORDS)


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout, and what stderr or the error says."""
    result = CliRunner().invoke(billaged, [str(argument) for argument in arguments])
    if isinstance(result.exception, BillagedError):
        return exit_code(result.exception), result.stdout, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def change(path: Path, statement: str, *values: object) -> int:
    with closing(sqlite3.connect(path)) as connection:
        changed = connection.execute(statement, values).rowcount
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return changed


def flip(path: Path, sought: bytes, offset: int) -> None:
    """Flip the lowest bit of one byte of a file: of the place where ``sought`` is."""
    content = bytearray(path.read_bytes())
    assert content.count(sought) == 1
    content[content.index(sought) + offset] ^= 1
    path.write_bytes(content)


def test_a_whole_journal(directory: Path) -> None:
    code, out, err = run("journal", "verify", "--data-dir", directory)
    assert (code, err) == (0, "")
    pairs = dict(line.split("  ", 1) for line in out.splitlines() if "  " in line)
    shown = {name: value.strip() for name, value in pairs.items()}
    assert shown["rows"] == f"{len(RECORDS)}, from 1 to {len(RECORDS)}"
    assert shown["received"] == "2026-11-10T12:00:01Z to 2026-11-10T12:01:00Z"
    assert (shown["metrics"], shown["tick"], shown["heartbeat"], shown["rules"]) == ("28", "25", "1", "1")
    assert (shown["started"], shown["stopped"], shown["possible_gap"]) == ("2", "2", "1")
    assert shown["ledger"] == f"folded up to {len(RECORDS)}"
    assert out.splitlines()[-1] == "the journal is whole"


def test_an_equal_ledger(directory: Path) -> None:
    code, out, err = run("journal", "replay", "--data-dir", directory)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[-1] == "equal"
    counts = dict(line.split(maxsplit=1) for line in lines[:-1])
    assert counts.pop("journal") == f"{len(RECORDS)} rows"
    with closing_engine(directory) as rows:
        assert counts == {table: f"{len(rows[table])} rows" for table in DUMPED}
        # Else the comparison would prove little.
        assert all(rows.values())


class closing_engine:
    """The canonical dump of a data directory's ledger."""

    def __init__(self, directory: Path) -> None:
        self._engine = open_for_reading(directory / "ledger.db")

    def __enter__(self) -> dict[str, list[tuple[object, ...]]]:
        return dump(self._engine)

    def __exit__(self, *_: object) -> None:
        self._engine.dispose()


def test_the_recomputed_ledger_can_be_kept(directory: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept" / "ledger.db"
    kept.parent.mkdir()
    code, out, _ = run("journal", "replay", "--into", kept, "--data-dir", directory)
    assert code == 0
    assert f"the recomputed ledger is in {kept}" in out
    assert [path.name for path in kept.parent.iterdir()] == ["ledger.db"]
    assert kept.stat().st_mode & 0o777 == 0o600
    with closing_engine(kept.parent) as again, closing_engine(directory) as before:
        assert again == before
    # Nothing that is there is written over.
    content = kept.read_bytes()
    code, _, err = run("journal", "replay", "--into", kept, "--data-dir", directory)
    assert code == 1
    assert "cannot be made: File exists" in err
    assert kept.read_bytes() == content


def test_a_replay_in_small_groups_with_evicted_vms_is_equal(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a long journal is replayed: many reads, many commits, ended VMs that only the fresh ledger still knows."""
    monkeypatch.setattr(journal_file, "_READ_ROWS", 3)
    monkeypatch.setattr(refold, "_FLUSH_ROWS", 0)
    monkeypatch.setattr(fold, "_ENDED_KEPT", 0)
    code, out, err = run("journal", "replay", "--data-dir", directory)
    assert (code, err, out.splitlines()[-1]) == (0, "", "equal")


def test_only_what_the_ledger_covers_is_compared_while_a_daemon_writes(tmp_path: Path) -> None:
    made = DataDir(tmp_path)
    made.put(*RECORDS)
    made.put(batch("ahead", (at("12:31:00"), GIB)), fold=False)
    code, out, _ = run("journal", "replay", "--data-dir", tmp_path)
    assert (code, out.splitlines()[-1]) == (0, "equal")
    assert out.splitlines()[0].split() == ["journal", str(len(RECORDS)), "rows"]
    assert run("journal", "verify", "--data-dir", tmp_path)[0] == 0
    made.close()


def test_what_the_daemon_adds_during_the_replay_is_replayed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = DataDir(tmp_path)
    made.put(*RECORDS)
    later = [batch("late-comer", (at("12:40:00"), GIB, 5))]

    def put_once(_done: int, _total: int) -> None:
        if later:
            made.put(later.pop())

    compared = replaying.replay(tmp_path, None, put_once)
    made.close()
    assert compared.equal
    assert compared.position == len(RECORDS) + 1


def test_a_flipped_byte_that_breaks_a_message_is_named(directory: Path) -> None:
    # The tag of the first field: the byte's lowest three bits say how it is coded.
    flip(directory / "journal.db", payload_of(MARKED), 0)
    sequence = RECORDS.index(MARKED) + 1
    code, out, err = run("journal", "verify", "--data-dir", directory)
    assert code == 1
    assert err.startswith(f"journal row {sequence} (kind 1) cannot be decoded: ")
    assert f"{len(RECORDS)}, from 1" in out
    assert "whole" not in out
    assert out.splitlines()[-1].startswith("Keep all files as they are")
    code, _, err = run("journal", "replay", "--data-dir", directory)
    assert code == 1
    assert err.startswith(f"journal row {sequence} (kind 1) cannot be decoded: ")


def test_a_flipped_byte_that_changes_an_amount_is_a_difference(directory: Path) -> None:
    """No message is broken by it: only the chain and the ledger can tell."""
    payload = payload_of(MARKED)
    # 1000 ns of CPU time as a varint is e8 07; with the bit flipped it is 1001.
    assert payload.count(b"\xe8\x07") == 1
    flip(directory / "journal.db", payload, payload.index(b"\xe8\x07"))
    code, _, err = run("journal", "verify", "--data-dir", directory)
    sequence = RECORDS.index(MARKED) + 1
    assert (code, err) == (1, f"journal row {sequence} was changed: it does not go on from the row before it")
    code, out, err = run("journal", "replay", "--data-dir", directory)
    assert code == 1
    assert "sessions: vm_id=marked, ordinal=1: cpu_time_ns is 2000, should be 1999" in out
    # It is not the ledger that should be put back.
    assert err.endswith("rows differ. 'billaged journal verify' says what is wrong with the journal.")


@pytest.mark.parametrize(
    ("delete", "problem"),
    [
        ("sequence = 7", "journal row 7 is missing"),
        ("sequence IN (7, 8, 9)", "journal rows 7 to 9 are missing\nand 2 more bad rows"),
        ("sequence = 1", "journal row 1 is missing"),
        (f"sequence = {len(RECORDS)}", f"journal row {len(RECORDS)} is missing"),
        ("sequence IN (3, 20)", "journal row 3 is missing\nand 1 more bad rows"),
    ],
)
def test_a_deleted_row_is_named(directory: Path, delete: str, problem: str) -> None:
    assert change(directory / "journal.db", f"DELETE FROM journal WHERE {delete}")
    code, _, err = run("journal", "verify", "--data-dir", directory)
    assert (code, err) == (1, problem)
    code, _, err = run("journal", "replay", "--data-dir", directory)
    assert code == 1
    assert "is missing" in err or "the journal ends at" in err


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        (
            "UPDATE journal SET kind = 7 WHERE sequence = 3",
            "journal row 3 (kind 7) cannot be decoded: 7 is",
        ),
        ("UPDATE journal SET payload = '{}' WHERE sequence = 2", "journal row 2 is damaged: a column is not of"),
        ("UPDATE journal SET payload = x'7b7d' WHERE sequence = 2", "journal row 2 (kind 64) cannot be decoded: "),
        ("UPDATE journal SET payload = x'ff' WHERE sequence = 1", "journal row 1 (kind 65) cannot be decoded: "),
        ("UPDATE journal SET received_ns = 'noon' WHERE sequence = 4", "journal row 4 is damaged: a column is not of"),
        ("UPDATE about SET pruned = 2", "journal row 1 is still there, though rows up to 2 have left\nand 1 more"),
        ("UPDATE about SET journal_id = 'another'", "but this one is another"),
        ("DELETE FROM about", "it does not say which it is"),
        ("PRAGMA user_version = 9", "its schema is 9"),
    ],
)
def test_other_damage_is_named(directory: Path, statement: str, problem: str) -> None:
    change(directory / "journal.db", statement)
    code, _, err = run("journal", "verify", "--data-dir", directory)
    assert code == 1
    assert problem in err


def test_a_damaged_file_is_named(directory: Path) -> None:
    """A page of the table overwritten, as a bad disk does it."""
    path = directory / "journal.db"
    content = bytearray(path.read_bytes())
    place = content.index(payload_of(MARKED)) // 4096 * 4096
    content[place : place + 8] = b"\xff" * 8
    path.write_bytes(content)
    code, _, err = run("journal", "verify", "--data-dir", directory)
    assert code == 1
    assert "damaged" in err or "malformed" in err


@pytest.mark.parametrize(
    "lose",
    [Path.unlink, lambda path: path.write_bytes(b"nothing of the kind" * 500), lambda path: path.write_bytes(b"")],
    ids=["missing", "no database", "empty"],
)
def test_a_journal_is_verified_whatever_became_of_its_ledger(directory: Path, lose: Callable[[Path], object]) -> None:
    """It is what the ledger is folded anew from: whoever has lost that has to know."""
    lose(directory / "ledger.db")
    code, out, err = run("journal", "verify", "--data-dir", directory)
    assert code == 1
    assert f"{len(RECORDS)}, from 1 to {len(RECORDS)}" in out
    assert out.splitlines()[-1] == "every row of the journal holds"
    assert err.startswith("nothing says up to where it was folded: ")
    assert run("journal", "replay", "--into", directory / "anew.db", "--data-dir", directory)[0] == 0
    change(directory / "journal.db", "DELETE FROM journal WHERE sequence = 5")
    code, out, err = run("journal", "verify", "--data-dir", directory)
    assert code == 1
    assert "journal row 5 is missing" in err
    assert "every row" not in out


def test_a_ledger_ahead_of_its_journal_is_named(directory: Path) -> None:
    change(directory / "ledger.db", "UPDATE checkpoint SET position = position + 5")
    code, _, err = run("journal", "verify", "--data-dir", directory)
    assert code == 1
    assert f"folded up to journal row {len(RECORDS) + 5}, but the journal holds 1 to {len(RECORDS)}" in err
    code, _, err = run("journal", "replay", "--data-dir", directory)
    assert code == 1
    assert err == f"the journal ends at row {len(RECORDS)}, but the ledger has folded {len(RECORDS) + 5}."


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        (
            "UPDATE facts SET cpu_time_ns = cpu_time_ns + 1 WHERE vm_id = 'a' AND ordinal = 1"
            f" AND bucket_start_ns = {at('10:00:00')}",
            f"facts: bucket_start_ns={at('10:00:00')}, bucket_ns=3600000000000, vm_id=a, ordinal=1:"
            " cpu_time_ns is 60000000001, should be 60000000000",
        ),
        ("DELETE FROM gaps WHERE vm_id = 'marked'", "is not in the ledger"),
        ("UPDATE gaps SET kind = 'stop' WHERE vm_id = 'marked'", "kind is stop, should be step"),
        ("UPDATE sessions SET customer_id = 'bravo' WHERE vm_id = 'a'", "customer_id is bravo, should be acme"),
        (
            "INSERT INTO tallies VALUES ('invented', 1)",
            "tallies: name=invented: does not follow from the journal",
        ),
        ("DELETE FROM dead_letters", "dead_letters: sequence="),
        ("UPDATE anomalies SET detail = '[]'", "detail is [], should be"),
        ("UPDATE instances SET active_vms = '[]'", "instances: instance_id=host: active_vms is [], should be"),
        ("UPDATE corrections SET samples = 9", "corrections: sequence="),
        ("DELETE FROM reported_gaps", "reported_gaps: sequence="),
    ],
)
def test_a_changed_ledger_is_shown_row_by_row(directory: Path, statement: str, shown: str) -> None:
    changed = change(directory / "ledger.db", statement)
    assert changed > 0
    code, out, err = run("journal", "replay", "--data-dir", directory)
    assert code == 1
    assert shown in out
    assert err.startswith(f"the ledger is not what its journal gives: {changed} rows differ. Restore a backup of the")
    assert "equal" not in out.splitlines()


def test_many_differences_are_counted(directory: Path) -> None:
    with closing(sqlite3.connect(directory / "ledger.db")) as connection:
        connection.executemany("INSERT INTO tallies VALUES (?, 1)", [(f"invented-{n}",) for n in range(9)])
        connection.commit()
    code, out, _ = run("journal", "replay", "--data-dir", directory)
    assert code == 1
    assert out.count("tallies: name=invented") == 5
    assert "tallies: and 4 more" in out


def test_rows_that_left_for_a_segment_are_replayed_from_it(tmp_path: Path) -> None:
    made = DataDir(tmp_path)
    made.put(*RECORDS)
    segments = Segments(tmp_path / "segments")
    assert segments.archive(made.journal, 0, 10, RECEIVED_LONG_AFTER) == 10
    assert segments.archive(made.journal, 10, 14, RECEIVED_LONG_AFTER) == 14
    made.journal.prune(14)
    made.close()
    code, out, err = run("journal", "replay", "--data-dir", tmp_path)
    assert (code, err, out.splitlines()[-1]) == (0, "", "equal")
    # A damaged one is named.
    second = sorted((tmp_path / "segments").iterdir())[1]
    second.write_bytes(second.read_bytes()[:-20])
    code, _, err = run("journal", "replay", "--data-dir", tmp_path)
    assert code == 1
    assert str(second) in err


def test_a_journal_whose_segments_are_missing_is_whole_but_cannot_be_replayed(tmp_path: Path) -> None:
    made = DataDir(tmp_path)
    made.put(*RECORDS)
    made.journal.prune(10)
    made.close()
    code, out, err = run("journal", "verify", "--data-dir", tmp_path)
    assert (code, err) == (0, "")
    assert f"from 11 to {len(RECORDS)}" in out
    kept = tmp_path / "kept.db"
    code, _, err = run("journal", "replay", "--into", kept, "--data-dir", tmp_path)
    assert code == 1
    assert err.startswith("no segment in ")
    assert "holds journal row 1." in err
    # Half a ledger is not left behind.
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("kept")]


def test_a_journal_that_is_all_pruned_is_whole(tmp_path: Path) -> None:
    made = DataDir(tmp_path)
    made.put(*RECORDS)
    made.journal.prune(len(RECORDS))
    made.close()
    code, out, err = run("journal", "verify", "--data-dir", tmp_path)
    assert (code, err) == (0, "")
    assert "received" not in out


def test_an_empty_journal_is_whole_and_equal(tmp_path: Path) -> None:
    DataDir(tmp_path).close()
    assert run("journal", "verify", "--data-dir", tmp_path)[0] == 0
    code, out, _ = run("journal", "replay", "--data-dir", tmp_path)
    assert (code, out.splitlines()[-1]) == (0, "equal")


def test_a_ledger_of_another_journal(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        data_dir(tmp_path / name, *RECORDS)
    (tmp_path / "one" / "ledger.db").write_bytes((tmp_path / "two" / "ledger.db").read_bytes())
    code, _, err = run("journal", "verify", "--data-dir", tmp_path / "one")
    assert code == 1
    assert err.startswith("the ledger was folded from journal ")
    code, _, err = run("journal", "replay", "--data-dir", tmp_path / "one")
    assert code == 1
    assert err.startswith("the ledger was folded from journal ")
