"""Older ledgers and journals are brought up to date at a start, whatever happens meanwhile; newer ones are refused."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from daemon_calls import SECOND, batch
from daemon_process import ROOT, DaemonProcess, fails_to_start
from faults.injected import Injection
from faults.scale import scaled
from old_ledgers import ANOMALIES, NEWEST, OLDER, anomalies_of, content_of, old_ledger, rows_of, schema_of

from billaged.cli.main import billaged
from billaged.intake.sqlite import SqliteJournal
from billaged.ledger.database import newest_schema, open_for_reading, open_for_writing
from billaged.model.errors import StorageError
from billaged.model.records import FoldRules

BACKUP = re.compile(r"ledger-(\d{4})-before-(\d{4})-\d{8}T\d{6}Z\.db")
# Of a copy, a migration and its commit, about.
WRITES = 344
MIGRATE = (
    "import sys, pathlib; from billaged.ledger.database import open_for_writing;"
    "open_for_writing(pathlib.Path(sys.argv[1])).dispose()"
)
OPEN_JOURNAL = (
    "import sys, pathlib; from billaged.intake.sqlite import SqliteJournal;"
    "SqliteJournal(pathlib.Path(sys.argv[1])).close()"
)


def backups_of(ledger: Path) -> list[Path]:
    return sorted((ledger.parent / "backups").glob("*"))


def test_the_newest_schema_is_the_one_tested_here() -> None:
    assert newest_schema() == NEWEST


# --- ledgers -------------------------------------------------------------------------


@pytest.mark.parametrize("schema", OLDER)
def test_an_older_ledger_is_copied_then_migrated(tmp_path: Path, schema: str) -> None:
    ledger = old_ledger(tmp_path / "ledger.db", schema)
    before, anomalies = content_of(ledger), anomalies_of(ledger)
    said: list[str] = []
    open_for_writing(ledger, said.append).dispose()
    assert schema_of(ledger) == NEWEST
    assert anomalies_of(ledger) == anomalies
    assert len(anomalies) == ANOMALIES
    (backup,) = backups_of(ledger)
    found = BACKUP.fullmatch(backup.name)
    assert found is not None
    assert found.groups() == (schema, NEWEST)
    assert content_of(backup) == before
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert stat.S_IMODE(backup.parent.stat().st_mode) == 0o700
    # Whoever waits for the start hears that it goes on.
    assert said[0].startswith("copying the ledger before its migration: ")
    assert said[-1] == f"migrating the ledger from schema {schema} to {NEWEST}"


def test_one_that_is_up_to_date_or_new_is_not_copied(tmp_path: Path) -> None:
    for _ in range(2):
        open_for_writing(tmp_path / "ledger.db").dispose()
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.db"]


def test_the_newest_few_copies_stay(tmp_path: Path) -> None:
    ledger = old_ledger(tmp_path / "ledger.db", "0002")
    folder = tmp_path / "backups"
    folder.mkdir()
    stamps = [f"202611{day:02}T120000Z" for day in range(1, 6)]
    # Named by revision first: what counts is when they were made.
    for schema, made in zip(("0009", "0001", "0008", "0001", "0001"), stamps, strict=True):
        shutil.copy(ledger, folder / f"ledger-{schema}-before-0009-{made}.db")
        with closing(sqlite3.connect(folder / f"ledger-{schema}-before-0009-{made}.db", isolation_level=None)) as copy:
            copy.execute("UPDATE checkpoint SET epoch = 77")
            # As backups are.
            copy.execute("PRAGMA journal_mode=DELETE")
    (folder / "ledger-20260101T120000Z.db").write_bytes(b"somebody asked for this one")
    (folder / "ledger-0001-before-0003-20260101T120000Z.db.partial").write_bytes(b"a start was killed")
    (folder / "notes.txt").write_bytes(b"somebody's")
    open_for_writing(ledger).dispose()
    names = [path.name for path in backups_of(ledger)]
    made_now = [name for name in names if name.startswith("ledger-0002-")]
    assert len(made_now) == 1
    assert names == sorted(
        [
            "ledger-20260101T120000Z.db",
            "notes.txt",
            *(f"ledger-0001-before-0009-{made}.db" for made in stamps[3:]),
            *made_now,
        ]
    )


def test_a_migration_that_fails_changes_nothing_and_is_copied_once(tmp_path: Path) -> None:
    ledger = old_ledger(tmp_path / "ledger.db", "0001")
    with closing(sqlite3.connect(ledger)) as connection:
        # In the way of the last migration, after the others have been through.
        connection.execute("CREATE INDEX anomalies_anew ON tallies (value)")
    before = content_of(ledger)
    for _ in range(3):
        with pytest.raises(
            StorageError, match=r"could not be migrated from schema 0001 to 0003: .*anomalies_anew"
        ) as error:
            open_for_writing(ledger)
        assert "It is as it was before." in str(error.value)
        assert error.value.hint == f"A copy of it is {backups_of(ledger)[0]}."
    assert content_of(ledger) == before
    (backup,) = backups_of(ledger)
    assert content_of(backup) == before


# All its syncs: of the copy (fsync) and of the ledger. One thread does it all, so they are counted alike each time.
KILLS = [
    *(Injection("fsync", "signal=SIGKILL", number) for number in (1, 2)),
    Injection("rename", "signal=SIGKILL", 1),
    *(Injection("fdatasync", "signal=SIGKILL", number) for number in range(1, 6)),
    *(Injection("pwrite64", "signal=SIGKILL", number) for number in range(1, WRITES, scaled(60, 20, 2))),
]


@pytest.mark.parametrize("kill", KILLS, ids=lambda kill: kill.name)
def test_a_migration_that_is_killed_leaves_the_old_ledger_or_the_new(tmp_path: Path, kill: Injection) -> None:
    """At each sync, and at writes in all stages: of the copy, of the migration, of its commit."""
    ledger = old_ledger(tmp_path / "ledger.db", "0001")
    before, anomalies = content_of(ledger), anomalies_of(ledger)
    run_killed(kill, MIGRATE, ledger, tmp_path / "strace.log")
    # Opening the files would already repair them; what a start finds is looked at in a copy.
    found = shutil.copytree(tmp_path, tmp_path / "found") / "ledger.db"
    assert schema_of(found) in ("0001", NEWEST)
    if schema_of(found) == "0001":
        assert content_of(found) == before
    for backup in backups_of(found):
        assert backup.suffix == ".partial" or content_of(backup) == before
    open_for_writing(ledger).dispose()
    assert schema_of(ledger) == NEWEST
    assert anomalies_of(ledger) == anomalies
    (backup,) = backups_of(ledger)
    assert content_of(backup) == before


def run_killed(kill: Injection, code: str, path: Path, log: Path) -> None:
    ended = subprocess.run(
        [*kill.under(path.parent, log), sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # Writes vary a little: beyond the last one it ends well.
    assert ended.returncode == -9 or (kill.call == "pwrite64" and ended.returncode == 0), ended


@pytest.mark.parametrize("opens", [open_for_writing, open_for_reading])
def test_a_newer_ledger_is_refused_and_left_alone(tmp_path: Path, opens: object) -> None:
    ledger = tmp_path / "ledger.db"
    open_for_writing(ledger).dispose()
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0099'")
    before = content_of(ledger)
    with pytest.raises(StorageError, match=f"has schema 0099, this version of billaged knows {NEWEST}") as error:
        opens(ledger)  # type: ignore[operator]
    assert error.value.hint.startswith(
        "Use the version of billaged that wrote it, or a newer one; or put back a backup"
    )
    assert content_of(ledger) == before
    assert backups_of(ledger) == []


def test_who_only_reads_is_told_how_an_older_ledger_is_upgraded(tmp_path: Path) -> None:
    ledger = old_ledger(tmp_path / "ledger.db", "0002")
    with pytest.raises(StorageError, match=f"has schema 0002, older than this version's, {NEWEST}") as error:
        open_for_reading(ledger)
    assert error.value.hint.startswith("Start the daemon once")
    assert schema_of(ledger) == "0002"


# --- with a real daemon --------------------------------------------------------------


def test_a_daemon_upgrades_its_ledger_and_says_so(tmp_path: Path) -> None:
    with closing(SqliteJournal(tmp_path / "journal.db")) as journal:
        old_ledger(tmp_path / "ledger.db", "0001", journal_id=journal.journal_id)
    with DaemonProcess(tmp_path) as daemon:
        assert daemon.call("SendMetricsBatch", batch("vm-1", time.time_ns() - SECOND, time.time_ns())).success
        assert daemon.stop() == 0
        (line,) = [line for line in daemon.log if line["message"] == "migrating the ledger"]
    (backup,) = backups_of(tmp_path / "ledger.db")
    assert (line["schema"], line["to_schema"], line["backup"]) == ("0001", NEWEST, str(backup))
    assert rows_of(tmp_path / "ledger.db", "SELECT vm_id, samples FROM sessions") == [("vm-1", 2)]


def test_a_ledger_that_was_folded_by_older_rules_is_copied_then_folded_anew(tmp_path: Path) -> None:
    """What its error says is what helps."""
    data_dir = tmp_path / "var"
    with DaemonProcess(data_dir) as daemon:
        for vm in range(5):
            daemon.call("SendMetricsBatch", batch(f"vm-{vm}", time.time_ns() - SECOND, time.time_ns()))
        assert daemon.stop() == 0
        right = daemon.ledger()
    with closing(SqliteJournal(data_dir / "journal.db")) as journal:
        journal_id = journal.journal_id
    for path in data_dir.glob("ledger.db*"):
        path.unlink()
    old_ledger(data_dir / "ledger.db", "0001", journal_id=journal_id, rules=FoldRules())
    before = content_of(data_dir / "ledger.db")
    for _ in range(2):
        ended = fails_to_start(data_dir)
        assert ended.exit_code == 1
        assert len(ended.stderr.splitlines()) == 1
        assert "billaged journal replay --into NEW" in ended.stderr
    (backup,) = backups_of(data_dir / "ledger.db")
    assert content_of(backup) == before
    result = CliRunner().invoke(
        billaged, ["journal", "replay", "--into", str(tmp_path / "new.db"), "--data-dir", str(data_dir)]
    )
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(billaged, ["ledger", "restore", str(tmp_path / "new.db"), "--data-dir", str(data_dir)])
    assert result.exit_code == 0, result.output
    with DaemonProcess(data_dir) as daemon:
        assert daemon.stop() == 0
        assert daemon.ledger()["sessions"] == right["sessions"]
        assert daemon.ledger()["facts"] == right["facts"]


# --- journals ------------------------------------------------------------------------


def old_journal(path: Path, rows: int = 300) -> Path:
    """Of version 1, which had no chain."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(
            "BEGIN;"
            "CREATE TABLE journal (sequence INTEGER PRIMARY KEY AUTOINCREMENT, kind INTEGER NOT NULL,"
            " received_ns INTEGER NOT NULL, caller TEXT NOT NULL, payload BLOB NOT NULL);"
            "CREATE TABLE about (one INTEGER PRIMARY KEY CHECK (one = 1), journal_id TEXT NOT NULL,"
            " pruned INTEGER NOT NULL);"
            "INSERT INTO about VALUES (1, 'journal-1', 0); PRAGMA user_version = 1; COMMIT;"
        )
        with connection:
            connection.executemany(
                "INSERT INTO journal VALUES (?, 1, ?, 'me', x'00')", ((number, number) for number in range(1, rows + 1))
            )
    return path


def test_a_newer_journal_is_refused_and_left_alone(tmp_path: Path) -> None:
    SqliteJournal(tmp_path / "journal.db").close()
    with closing(sqlite3.connect(tmp_path / "journal.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = content_of(tmp_path / "journal.db")
    ended = fails_to_start(tmp_path)
    assert ended.exit_code == 1
    (line,) = ended.stderr.splitlines()
    assert "has schema 99, this version of billaged knows 2. Use the version of billaged that wrote it" in line
    assert content_of(tmp_path / "journal.db") == before
    assert not (tmp_path / "ledger.db").exists()


JOURNAL_KILLS = [
    *(Injection("fdatasync", "signal=SIGKILL", number) for number in (1, 2)),
    *(Injection("pwrite64", "signal=SIGKILL", number) for number in range(1, 12, scaled(3, 2, 1))),
]


@pytest.mark.parametrize("kill", JOURNAL_KILLS, ids=lambda kill: kill.name)
def test_an_upgrade_of_the_journal_that_is_killed_leaves_the_old_or_the_new(tmp_path: Path, kill: Injection) -> None:
    path = old_journal(tmp_path / "journal.db")
    run_killed(kill, OPEN_JOURNAL, path, tmp_path / "strace.log")
    with closing(SqliteJournal(path)) as journal:
        assert journal.journal_id == "journal-1"
        assert journal.position == 300
        assert [row.sequence for rows in journal.read(0) for row in rows] == list(range(1, 301))
