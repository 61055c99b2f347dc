"""Backups are made while a daemon works, and what is restored is exact."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest
from backup_fixtures import (
    RECORDS,
    change,
    data_directory,
    done,
    ledger_tables,
    live,
    refused,
    run,
)
from daemon_calls import until
from daemon_process import ROOT, DaemonProcess, environment, ledger_of
from faults.judge import check_all, check_ledger
from faults.load import Fleet
from faults.scale import base_seed
from faults.settings import SETTINGS
from fuzz.judge import METHODS, journal_rows

from billaged.cli.copying import progress_bytes
from billaged.ledger.copying import Pace, copy_database, new_file, own_folder


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return data_directory(tmp_path / "var")


# --- with a daemon under load --------------------------------------------------------


def test_a_ledger_restored_from_a_backup_under_load_is_exact(tmp_path: Path) -> None:
    directory, copy, fleet = tmp_path / "var", tmp_path / "copy.db", Fleet(base_seed())
    with DaemonProcess(directory, SETTINGS) as daemon:
        with fleet.under_load(daemon):
            fleet.until_acked(100)
            # So slow that much is committed meanwhile.
            live(directory, "ledger", "backup", "--to", copy, "--rate", 1)
            fleet.until_acked(100)
            live(directory, "ledger", "check")
            assert (
                b"is held by another billaged (pid"
                in subprocess.run(
                    [sys.executable, "-m", "billaged", "ledger", "restore", str(copy)],
                    env=environment(directory, {}),
                    cwd=ROOT,
                    capture_output=True,
                    timeout=60,
                    check=False,
                ).stderr
            )
        fleet.settle(daemon)
        assert daemon.stop() == 0
    right = ledger_of(directory)
    assert run("ledger", "check", copy)[0] == 0
    restored = done("ledger", "restore", copy, "--data-dir", directory)
    assert restored["ledger_position"] < restored["journal_position"]
    assert Path(restored["set_aside"], "ledger.db").exists()
    with DaemonProcess(directory, SETTINGS) as daemon:
        assert daemon.stop() == 0
        assert any(line.get("replayed") for line in daemon.log)
    check_all(directory, fleet)
    for table in ("sessions", "facts"):
        assert ledger_of(directory)[table] == right[table]


def test_a_whole_backup_under_load_has_all_that_was_acknowledged_before(tmp_path: Path) -> None:
    directory, fleet = tmp_path / "var", Fleet(base_seed())
    folder, tar, streamed = tmp_path / "folder", tmp_path / "b.tar", tmp_path / "streamed.tar"
    acked = []
    with DaemonProcess(directory, SETTINGS) as daemon, fleet.under_load(daemon):
        for target in (folder, tar, "-"):
            fleet.until_acked(60)
            acked.append(fleet.acked.copy())
            ended = live(directory, "backup", "--to", target)
        streamed.write_bytes(ended.stdout)
        # The power fails, and the disk is gone.
        daemon.kill()
    for before, backup in zip(acked, (folder, tar, streamed), strict=True):
        into = tmp_path / f"restored-{backup.name}"
        done("restore", backup, "--data-dir", into)
        with DaemonProcess(into, SETTINGS) as daemon:
            assert daemon.stop() == 0
        journaled = {row.payload for row in journal_rows(into) if row.kind in METHODS}
        assert {sent.payload for sent in before} <= journaled
        check_ledger(into)
        assert run("verify", "--data-dir", into)[0] == 0
    # A folder is proved where it is.
    assert run("verify", "--data-dir", folder)[0] == 0


def test_a_ledger_is_restored_where_the_daemon_was_killed(tmp_path: Path) -> None:
    """The logs of the file that is replaced go with it: SQLite would apply them to the other one."""
    directory, fleet = tmp_path / "var", Fleet(base_seed())
    with DaemonProcess(directory, SETTINGS) as daemon, fleet.under_load(daemon):
        fleet.until_acked(100)
        live(directory, "ledger", "backup", "--to", tmp_path / "copy.db")
        fleet.until_acked(60)
        daemon.kill()
    assert (directory / "ledger.db-wal").stat().st_size
    restored = done("ledger", "restore", tmp_path / "copy.db", "--data-dir", directory)
    assert Path(restored["set_aside"], "ledger.db-wal").exists()
    with DaemonProcess(directory, SETTINGS) as daemon:
        fleet.settle(daemon)
        assert daemon.stop() == 0
    check_all(directory, fleet)


# --- backups of the ledger -----------------------------------------------------------


def test_without_a_file_it_goes_beside_the_ledger_and_the_newest_stay(directory: Path) -> None:
    folder = directory / "backups"
    folder.mkdir()
    for day in (1, 2, 3):
        (folder / f"ledger-202611{day:02}T030000Z.db").touch()
    (folder / "ledger-0001-before-0003-20261101T030000Z.db").touch()
    made = done("ledger", "backup", "--keep", "2", "--data-dir", directory)
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "ledger-0001-before-0003-20261101T030000Z.db",
        "ledger-20261103T030000Z.db",
        Path(made["backup"]).name,
    ]
    assert made["ledger_position"] == len(RECORDS)
    assert stat.S_IMODE(Path(made["backup"]).stat().st_mode) == 0o600
    assert ledger_tables(Path(made["backup"])) == ledger_tables(directory / "ledger.db")


def test_a_backup_needs_no_other_file_and_no_place_to_write(directory: Path, tmp_path: Path) -> None:
    done("ledger", "backup", "--to", tmp_path / "copy.db", "--data-dir", directory)
    with closing(sqlite3.connect(f"{(tmp_path / 'copy.db').as_uri()}?mode=ro&immutable=1", uri=True)) as copy:
        assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert run("ledger", "check", tmp_path / "copy.db")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.db", "var"]


def test_to_stdout(directory: Path, tmp_path: Path) -> None:
    ended = live(directory, "ledger", "backup", "--to", "-", "--json")
    (tmp_path / "copy.db").write_bytes(ended.stdout)
    assert json.loads(ended.stderr)["bytes"] == len(ended.stdout)
    assert ledger_tables(tmp_path / "copy.db") == ledger_tables(directory / "ledger.db")


def test_nothing_is_written_over(directory: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken.tar"
    taken.write_bytes(b"mine")
    assert f"there is a {taken} already" in refused("ledger", "backup", "--to", taken, "--data-dir", directory)
    assert f"there is a {taken} already" in refused("backup", "--to", taken, "--data-dir", directory)
    assert f"{directory} is not empty" in refused("backup", "--to", directory, "--data-dir", directory)
    assert taken.read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["new", "b.tar", "backups/new", "segments/b.tar"])
def test_none_is_made_in_the_directory_itself(directory: Path, name: str) -> None:
    before = set(directory.rglob("*"))
    assert "itself: what takes the one takes the other" in refused(
        "backup", "--to", directory / name, "--data-dir", directory
    )
    assert set(directory.rglob("*")) == before


def test_what_a_killed_backup_has_left_is_begun_anew(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.db.partial").write_bytes(b"half of it" * 100_000)
    done("ledger", "backup", "--to", tmp_path / "copy.db", "--data-dir", directory)
    assert ledger_tables(tmp_path / "copy.db") == ledger_tables(directory / "ledger.db")
    assert not (tmp_path / "copy.db.partial").exists()


@pytest.mark.parametrize("arguments", [["ledger", "backup", "--to"], ["backup", "--to"]], ids=" ".join)
@pytest.mark.parametrize("target", ["-", "copy.tar"])
def test_one_that_is_asked_to_end_leaves_no_large_files(
    directory: Path, tmp_path: Path, arguments: list[str], target: str
) -> None:
    change(directory / "ledger.db", "CREATE TABLE ballast (bytes)", "INSERT INTO ballast VALUES (zeroblob(9000000))")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    before = {path.name for path in tmp_path.iterdir()}
    with subprocess.Popen(
        [sys.executable, "-m", "billaged", *arguments, "-" if target == "-" else tmp_path / target, "--rate", "1"],
        env={**environment(directory, {}), "TMPDIR": str(temporary)},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    ) as process:
        until(
            lambda: any(
                "ledger.db" in path.name or ".partial" in path.name
                for path in tmp_path.rglob("*.*")
                if directory not in path.parents
            ),
            "a copy that is being made",
        )
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert list(temporary.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("call", "made"), [("open", new_file), ("mkdir", own_folder)])
def test_one_that_is_asked_to_end_at_its_first_moment_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    made: Callable[[Path], AbstractContextManager[object]],
) -> None:
    """The signal comes between the system's call that makes it and whatever is there to clean it up."""
    real = getattr(os, call)

    def asked_meanwhile(*arguments: object, **named: object) -> object:
        result = real(*arguments, **named)
        signal.raise_signal(signal.SIGTERM)
        return result

    before = signal.getsignal(signal.SIGTERM)
    target = tmp_path / "copy.tar" if call == "open" else tmp_path
    with pytest.raises(SystemExit), progress_bytes("backing up"):
        monkeypatch.setattr(os, call, asked_meanwhile)
        with made(target):
            pytest.fail("it goes on")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_two_backups_do_not_write_one_file(directory: Path, tmp_path: Path) -> None:
    with (tmp_path / "copy.db.partial").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        said = refused("ledger", "backup", "--to", tmp_path / "copy.db", "--data-dir", directory)
    assert "is being written by another process" in said


def test_room_that_the_daemon_needs_is_left(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNKEY_BILLAGED_MIN_FREE_BYTES", "1TiB")
    for arguments in (["ledger", "backup"], ["ledger", "backup", "--to", tmp_path / "x"], ["backup", "--to", "-"]):
        said = refused(*arguments, "--data-dir", directory)
        assert "and the daemon needs 1048576 MiB to stay free" in said
    for name in ("folder", "b.tar"):
        assert "to stay free" in refused("backup", "--to", tmp_path / name, "--data-dir", directory)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".partial")]


def test_it_takes_its_time(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "some.db")) as some, some:
        some.execute("CREATE TABLE bytes (bytes)")
        some.execute("INSERT INTO bytes VALUES (zeroblob(3000000))")
    told: list[tuple[int, int]] = []
    began = time.monotonic()
    copy_database(tmp_path / "some.db", tmp_path / "copy.db", Pace(10**7), lambda *bytes_done: told.append(bytes_done))
    assert time.monotonic() - began >= 0.3
    assert told == sorted(told)
    assert told[-1] == ((tmp_path / "copy.db").stat().st_size,) * 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["ledger", "backup", "--keep", "0"],
        ["ledger", "backup", "--keep", "1", "--to", "x"],
        ["ledger", "backup", "--rate", "fast"],
        ["ledger", "restore"],
        ["backup"],
        ["restore"],
    ],
    ids=" ".join,
)
def test_a_wrong_argument(arguments: list[str]) -> None:
    assert run(*arguments)[0] == 2


@pytest.mark.parametrize(
    "arguments", [["ledger", "backup"], ["ledger", "check"], ["backup", "--to", "-"]], ids=" ".join
)
def test_nothing_to_back_up(tmp_path: Path, arguments: list[str]) -> None:
    assert "there is no ledger" in refused(*arguments, "--data-dir", tmp_path)
    assert list(tmp_path.iterdir()) == []
