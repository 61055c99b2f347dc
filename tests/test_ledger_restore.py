"""``billaged ledger check`` and ``billaged ledger restore``: a ledger is put back, or refused with the reason."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from backup_fixtures import (
    LEFT,
    RECORDS,
    carry_on,
    change,
    data_directory,
    done,
    files_of,
    flip,
    ledger_tables,
    refused,
    run,
    samples,
)
from old_ledgers import old_ledger, schema_of

from billaged.directory import DataDirectory
from billaged.intake.sqlite import SqliteJournal


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return data_directory(tmp_path / "var")


# --- check ---------------------------------------------------------------------------


def test_check_says_what_it_is_and_finds_a_changed_row(directory: Path, tmp_path: Path) -> None:
    code, out, _ = run("ledger", "check", "--data-dir", directory)
    assert code == 0
    assert out.splitlines()[1].split() == ["schema", "0003"]
    done("ledger", "backup", "--to", tmp_path / "copy.db", "--data-dir", directory)
    for path, arguments in (
        (directory / "ledger.db", ["--data-dir", directory]),
        (tmp_path / "copy.db", [tmp_path / "copy.db"]),
    ):
        change(path, "UPDATE facts SET measured_ns = measured_ns + 1")
        code, out, err = run("ledger", "check", *arguments, "--format", "json")
        assert code == 1
        assert err.startswith("the ledger breaks what it must hold: sums, buckets. ")
        assert err.endswith("Do not restore it.") == (path.name == "copy.db")
        page = json.loads(out)
        assert (page["schema"], page["position"], page["ledger"]) == ("0003", len(RECORDS), str(path))
        assert page["verify"]["broken"]
    assert run("ledger", "check", tmp_path / "copy.db", "--format", "csv")[1].startswith("record,invariant,")


def test_check_of_what_is_no_ledger_of_this_version(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"this is text" * 1000)
    assert "cannot be read as a ledger" in refused("ledger", "check", tmp_path / "text")
    assert "there is no ledger at" in refused("ledger", "check", tmp_path / "nothing")
    old = old_ledger(tmp_path / "old.db", "0001")
    assert "has schema 0001, older than this version's" in refused("ledger", "check", old)


# --- restoring a ledger --------------------------------------------------------------


@pytest.fixture
def copy(directory: Path, tmp_path: Path) -> Path:
    done("ledger", "backup", "--to", tmp_path / "copy.db", "--data-dir", directory)
    return tmp_path / "copy.db"


def test_the_one_that_was_replaced_is_kept(directory: Path, copy: Path) -> None:
    carry_on(directory, *samples(29, 33))
    before = ledger_tables(directory / "ledger.db")
    restored = done("ledger", "restore", copy, "--data-dir", directory)
    assert restored["ledger_position"] == len(RECORDS)
    assert restored["journal_position"] == len(RECORDS) + 5
    assert ledger_tables(Path(restored["set_aside"]) / "ledger.db") == before
    assert stat.S_IMODE((directory / "ledger.db").stat().st_mode) == 0o600
    assert sorted(path.name for path in directory.iterdir()) == [
        "journal.db",
        "ledger.db",
        "lock",
        Path(restored["set_aside"]).name,
        "segments",
    ]


def test_a_ledger_that_is_gone_is_restored(directory: Path, copy: Path) -> None:
    for path in directory.glob("ledger.db*"):
        path.unlink()
    assert done("ledger", "restore", copy, "--data-dir", directory)["set_aside"] is None
    assert run("ledger", "check", "--data-dir", directory)[0] == 0


def test_one_of_an_older_schema_is_brought_up_to_date(directory: Path, tmp_path: Path) -> None:
    # Nothing has left this journal: it can be folded from its first row.
    (directory / "journal.db").unlink()
    with closing(SqliteJournal(directory / "journal.db")) as journal:
        old = old_ledger(tmp_path / "old.db", "0002", journal_id=journal.journal_id)
    restored = done("ledger", "restore", old, "--data-dir", directory)
    assert restored["ledger_schema"] == "0002"
    assert schema_of(directory / "ledger.db") == "0003"
    # The backup itself is left as it is, and no other is made.
    assert schema_of(old) == "0002"
    assert not (directory / "backups").exists()


def of_a_stranger(copy: Path) -> None:
    change(copy, "UPDATE checkpoint SET journal_id = 'another'")


def of_a_newer_version(copy: Path) -> None:
    change(copy, "UPDATE alembic_version SET version_num = '0099'")


def ahead(copy: Path) -> None:
    change(copy, "UPDATE checkpoint SET position = position + 1")


def behind(copy: Path) -> None:
    change(copy, f"UPDATE checkpoint SET position = {LEFT - 1}")


def of_another_past(copy: Path) -> None:
    change(copy, "UPDATE checkpoint SET chain = zeroblob(32)")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (of_a_stranger, "was folded from journal another, but the journal beside it is"),
        (of_a_newer_version, "has schema 0099, this version of billaged knows 0003"),
        (ahead, "the journal is older than the ledger"),
        (behind, "the ledger is older than what the journal still holds"),
        (of_another_past, "is not the one that the ledger has folded"),
        (lambda copy: copy.write_bytes(b"nothing of the kind" * 500), "cannot be read as a ledger"),
        (lambda copy: flip(copy, 4096 * 3), "is damaged"),
        (Path.unlink, "there is no ledger at"),
    ],
    ids=["stranger", "newer", "ahead", "behind", "another past", "no database", "damaged", "missing"],
)
def test_what_a_start_could_not_go_on_from_is_refused(
    directory: Path, copy: Path, how: Callable[[Path], object], said: str
) -> None:
    how(copy)
    before = files_of(directory)
    assert said in refused("ledger", "restore", copy, "--data-dir", directory)
    assert files_of(directory) == before


def test_a_running_daemon_is_not_replaced_under(directory: Path, copy: Path) -> None:
    held = DataDirectory(directory)
    before = files_of(directory)
    for arguments in (["ledger", "restore", copy], ["restore", copy.parent]):
        said = refused(*arguments, "--data-dir", directory)
        assert f"the data directory {directory} is held by another billaged (pid {os.getpid()})" in said
    held.release()
    assert files_of(directory) == before


def test_a_ledger_without_a_journal_is_refused(copy: Path, tmp_path: Path) -> None:
    said = refused("ledger", "restore", copy, "--data-dir", tmp_path / "empty")
    assert "a ledger alone cannot go on" in said
    assert not (tmp_path / "empty").exists()
