"""What somebody who may write the files could change behind the amounts: it is found, and acts on no terminal."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from faults.small_disk import small_disk
from report_fixtures import data_dir
from test_ledger_verify import RECORDS, change, run

from billaged.reports.sheet import Column, Sheet, as_blocks, as_columns

TRIGGER = "CREATE TRIGGER discount AFTER INSERT ON {} BEGIN DELETE FROM {} WHERE rowid = NEW.rowid; END"
# Sets a terminal's title, clears it, begins a new line and turns the direction of writing.
EVIL = "\x1b]0;owned\x07\x1b[2J\n\u202eevil"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    return data_dir(folder, *RECORDS)


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        (
            "UPDATE sessions SET state = (SELECT state FROM sessions WHERE vm_id = 'b') WHERE vm_id = 'c'",
            "sessions vm_id=c, ordinal=1: state is ",
        ),
        ("UPDATE dead_letters SET payload = x'00'", "dead_letters sequence="),
        ("UPDATE dead_letters SET caller = 'somebody'", "caller is somebody, should be test"),
        ("UPDATE dead_letters SET received_ns = 5", "received_ns is 5, should be "),
    ],
)
def test_what_the_fold_carries_on_is_proved(directory: Path, statement: str, shown: str) -> None:
    assert change(directory / "ledger.db", statement)
    code, out, err = run("--data-dir", directory)
    assert code == 1
    assert "the ledger breaks what it must hold: replay." in err
    assert shown in out


@pytest.mark.parametrize(
    ("name", "table", "invariant"), [("ledger", "facts", "file"), ("journal", "journal", "journal")]
)
def test_what_acts_in_a_file_by_itself_is_named(directory: Path, name: str, table: str, invariant: str) -> None:
    """No row says so, until it has done its work."""
    with closing(sqlite3.connect(directory / f"{name}.db")) as connection:
        connection.execute(TRIGGER.format(table, table))
    code, out, err = run("--data-dir", directory)
    assert code == 1
    assert f"the ledger breaks what it must hold: {invariant}." in err
    assert "it has a trigger, 'discount'" in out


def test_no_text_of_a_file_acts_on_a_terminal(directory: Path) -> None:
    with closing(sqlite3.connect(directory / "ledger.db")) as connection:
        for table in ("sessions", "facts", "gaps", "kept_instants", "anomalies"):
            connection.execute(f"UPDATE {table} SET vm_id = ? WHERE vm_id = 'a'", (EVIL,))
        connection.execute("UPDATE tallies SET name = ? WHERE name = 'late'", (EVIL,))
        connection.commit()
    for command in (
        ("verify",),
        ("journal", "replay"),
        ("gaps",),
        ("vms",),
        ("bill", "--period", "2026-11-10", "--vm", EVIL),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "billaged", *command, "--data-dir", str(directory)],
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr
        assert "\\x1b]0;owned\\x07\\x1b[2J\\n\\u202eevil" in said, command
        assert all(character.isprintable() for character in said.replace("\n", "")), command


def test_a_cell_stays_on_its_line() -> None:
    sheet = Sheet([Column("vm"), Column("cpu", number=True)], [[EVIL, "1"]], ["\x1b[0m", "1"])
    for text in (as_columns(sheet), as_blocks(sheet)):
        assert "\x1b" not in text
    assert len(as_columns(sheet).splitlines()) == 3


def test_a_full_disk_beside_the_ledger_says_nothing_about_it(directory: Path, tmp_path: Path) -> None:
    """The journal is folded anew into a file of its own: where that has no room, nothing was proved or refuted."""
    folder = tmp_path / "small"
    folder.mkdir()
    with small_disk(folder, 1) as disk:
        disk.fill(but_bytes=96 << 10)
        for command in (("verify",), ("journal", "replay")):
            done = subprocess.run(
                [*disk.under, sys.executable, "-m", "billaged", *command, "--data-dir", str(directory)],
                env={**os.environ, "TMPDIR": str(disk.path)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 1
            assert f"no room to fold the journal anew in {disk.path}. Free space there, or set TMPDIR." in done.stderr
            assert "breaks" not in done.stderr
            assert "Restore a backup" not in done.stderr
