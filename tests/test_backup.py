"""Backups are made while a daemon works, and what is restored is exact; what cannot be relied on is refused."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from daemon_calls import until
from daemon_process import ROOT, DaemonProcess, environment, fails_to_start, ledger_of
from faults.injected import Injection
from faults.judge import check_all, check_ledger
from faults.load import Fleet
from faults.scale import base_seed
from faults.settings import SETTINGS
from fuzz.judge import METHODS, journal_rows
from old_ledgers import old_ledger, schema_of
from report_fixtures import GIB, DataDir, at, batch

from billaged.cli.errors import exit_code
from billaged.cli.main import billaged
from billaged.directory import DataDirectory
from billaged.intake.segments import Segments
from billaged.intake.sqlite import SqliteJournal
from billaged.ledger.copying import Pace, copy_database
from billaged.model.errors import BillagedError
from billaged.model.records import FoldRules, Record, Tick
from billaged.model.time import MINUTE_NANOS, NANOS

RECEIVED_LONG_AFTER = 2**62
LEFT = 12


def samples(first: int, last: int, vm_id: str = "a") -> list[Record]:
    start_ns = at("10:00:00")
    return [batch(vm_id, (start_ns + at_ * MINUTE_NANOS, GIB, at_ * NANOS)) for at_ in range(first, last + 1)]


RECORDS: list[Record] = [FoldRules(), Tick(at("10:00:00"), 0, False), *samples(1, 28)]


def run(*arguments: str | Path, stdin: bytes = b"") -> tuple[int, str, str]:
    """Exit code, stdout, and what stderr or the error says."""
    result = CliRunner().invoke(billaged, [str(argument) for argument in arguments], input=stdin)
    if isinstance(result.exception, BillagedError):
        return exit_code(result.exception), result.stdout, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def done(*arguments: str | Path, stdin: bytes = b"") -> dict[str, Any]:
    """What a command that must work says."""
    code, out, err = run(*arguments, "--json", stdin=stdin)
    assert (code, err) == (0, "")
    return dict(json.loads(out))


def refused(*arguments: str | Path, stdin: bytes = b"") -> str:
    """What a command says that must not work; one line."""
    code, out, err = run(*arguments, stdin=stdin)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    return err


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            assert connection.execute(statement).rowcount, statement


def files_of(folder: Path) -> dict[str, bytes]:
    """All that counts in a data directory."""
    passing = {"lock"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in passing and not path.name.endswith(("-shm", "-wal"))
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows 1 to 12 in two segments, the rest in the journal, all of them in the ledger."""
    path = tmp_path_factory.mktemp("made")
    with closing(DataDir(path)) as made:
        made.put(*RECORDS)
        segments = Segments(path / "segments")
        for after, last in ((0, 5), (5, LEFT)):
            assert segments.archive(made.journal, after, last, RECEIVED_LONG_AFTER) == last
        made.journal.prune(LEFT)
    return path


@pytest.fixture
def directory(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "var")


def carry_on(directory: Path, *records: Record) -> None:
    with closing(DataDir(directory)) as made:
        made.put(*records)


# --- with a daemon under load --------------------------------------------------------


def live(directory: Path, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """A command in a process of its own, as an operator has it beside the daemon."""
    ended = subprocess.run(
        [sys.executable, "-m", "billaged", *map(str, arguments)],
        env=environment(directory, {}),
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended
    return ended


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


def ledger_tables(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


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
        assert (code, err) == (1, "the ledger breaks what it must hold: sums, buckets.")
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


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)


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


# --- restoring all -------------------------------------------------------------------


@pytest.fixture
def backup(directory: Path, tmp_path: Path) -> Path:
    done("backup", "--to", tmp_path / "backup", "--data-dir", directory)
    return tmp_path / "backup"


def test_a_folder_says_what_it_holds(backup: Path) -> None:
    page = json.loads((backup / "backup.json").read_text())
    assert [entry["name"] for entry in page["files"]] == [
        "ledger.db",
        "journal.db",
        "segments/journal-0000000000000001-0000000000000005.jsonl.gz",
        "segments/journal-0000000000000006-0000000000000012.jsonl.gz",
    ]
    assert (page["format"], page["journal_position"], page["ledger_position"]) == (1, len(RECORDS), len(RECORDS))
    modes = {stat.S_IMODE(path.stat().st_mode) for path in backup.rglob("*") if path.is_file()}
    assert modes == {0o600}
    sums = "".join(f"{entry['sha256']}  {entry['name']}\n" for entry in page["files"])
    subprocess.run(["sha256sum", "--check", "--quiet"], input=sums, cwd=backup, text=True, check=True, timeout=30)


def packed(directory: Path) -> bytes:
    return live(directory, "backup", "--to", "-").stdout


def test_each_form_gives_the_same_directory(directory: Path, backup: Path, tmp_path: Path) -> None:
    tar = packed(directory)
    (tmp_path / "backup.tar").write_bytes(tar)
    with tarfile.open(tmp_path / "backup.tar") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    subprocess.run(["gzip", str(tmp_path / "backup.tar")], check=True, timeout=30)
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    right = ledger_of(directory)
    for number, source in enumerate((backup, tmp_path / "backup.tar.gz", unpacked, "-")):
        into = tmp_path / f"restored-{number}"
        restored = done("restore", source, "--data-dir", into, stdin=tar)
        assert restored["journal_position"] == len(RECORDS)
        assert sorted(path.name for path in into.iterdir()) == ["journal.db", "ledger.db", "lock", "segments"]
        assert ledger_of(into) == right
        assert run("verify", "--data-dir", into)[0] == 0


def test_what_was_there_is_kept(directory: Path, backup: Path) -> None:
    carry_on(directory, *samples(29, 33))
    before = files_of(directory)
    said = refused("restore", backup, "--data-dir", directory)
    assert f"goes up to row {len(RECORDS) + 5}, and the backup's up to row {len(RECORDS)} does not hold" in said
    assert "billaged ledger restore" in said
    assert files_of(directory) == before
    restored = done("restore", backup, "--lose-newer", "--data-dir", directory)
    assert files_of(Path(restored["set_aside"])) == before
    assert restored["journal_position"] == len(RECORDS)
    assert run("verify", "--data-dir", directory)[0] == 0


def test_a_journal_that_went_on_another_way_is_not_lost_either(directory: Path, backup: Path, tmp_path: Path) -> None:
    """The backup is as long, or longer; its rows are others."""
    carry_on(directory, *samples(29, 33))
    done("backup", "--to", tmp_path / "longer", "--data-dir", directory)
    done("restore", backup, "--lose-newer", "--data-dir", directory)
    # What the backup continues is no loss.
    done("restore", tmp_path / "longer", "--data-dir", directory)
    done("restore", backup, "--lose-newer", "--data-dir", directory)
    carry_on(directory, *samples(29, 30, "b"))
    assert "usage that was acknowledged since would be lost" in refused(
        "restore", tmp_path / "longer", "--data-dir", directory
    )


def test_a_damaged_journal_is_replaced_without_a_word(directory: Path, backup: Path) -> None:
    (directory / "journal.db").write_bytes(b"what is left of it" * 1000)
    restored = done("restore", backup, "--data-dir", directory)
    assert (Path(restored["set_aside"]) / "journal.db").read_bytes().startswith(b"what is left of it")
    assert run("verify", "--data-dir", directory)[0] == 0


def one_segment(backup: Path) -> Path:
    return sorted((backup / "segments").iterdir())[0]


def edit_manifest(backup: Path, **fields: object) -> None:
    path = backup / "backup.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda backup: (backup / "backup.json").unlink(), "was not finished: it has no backup.json"),
        (lambda backup: (backup / "backup.json").write_text("{"), "is damaged"),
        (lambda backup: edit_manifest(backup, format=2), "was made by a later version"),
        (lambda backup: edit_manifest(backup, files=[]), "is damaged: its files are []"),
        (
            lambda backup: edit_manifest(backup, files=[{"name": "../x", "bytes": 1, "sha256": ""}]),
            "is damaged: its files are",
        ),
        (lambda backup: edit_manifest(backup, ledger_schema="0099"), "has schema 0099"),
        (lambda backup: flip(backup / "ledger.db", 9_000), "ledger.db of"),
        (lambda backup: flip(backup / "journal.db", 9_000), "journal.db of"),
        (lambda backup: flip(one_segment(backup), 60), "is not what was written"),
        (lambda backup: one_segment(backup).unlink(), "lacks segments/journal-"),
        (lambda backup: (backup / "journal.db").unlink(), "lacks journal.db"),
    ],
    ids=[
        "unfinished",
        "no JSON",
        "later format",
        "no files",
        "elsewhere",
        "later schema",
        "ledger",
        "journal",
        "segment",
        "no segment",
        "no journal",
    ],
)
def test_a_damaged_folder_is_refused(
    directory: Path, backup: Path, how: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    how(backup)
    before = files_of(directory)
    assert said in refused("restore", backup, "--data-dir", directory)
    assert files_of(directory) == before


def repacked(tar: bytes, how: Callable[[str, bytes], list[tuple[str, bytes]]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(tar)) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in old:
            content = old.extractfile(member)
            assert content is not None
            for name, changed in how(member.name, content.read()):
                info = tarfile.TarInfo(name)
                info.size = len(changed)
                new.addfile(info, io.BytesIO(changed))
    return out.getvalue()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda tar: tar[: len(tar) // 2], "is no backup, or not all of it"),
        (lambda _: b"no tar file" * 1000, "is no backup, or not all of it"),
        (lambda _: b"", "is no backup, or not all of it"),
        (
            lambda tar: repacked(tar, lambda name, content: [] if name.endswith(".json") else [(name, content)]),
            "was not finished: it has no backup.json",
        ),
        (lambda tar: repacked(tar, lambda name, content: [(name, content), ("../../x", b"x")]), "it has ../../x"),
        (
            lambda tar: repacked(
                tar, lambda name, content: [(name, content[:-1] + b"x" if name.endswith("ledger.db") else content)]
            ),
            "ledger.db of the backup on stdin is not what was written",
        ),
    ],
    ids=["cut", "no tar", "empty", "unfinished", "elsewhere", "changed"],
)
def test_a_damaged_tar_is_refused(directory: Path, how: Callable[[bytes], bytes], said: str, tmp_path: Path) -> None:
    before = files_of(directory)
    assert said in refused("restore", "-", "--data-dir", directory, stdin=how(packed(directory)))
    assert files_of(directory) == before
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("call", ["rename", "unlink"])
@pytest.mark.parametrize("number", [1, 2, 4, 6, 8])
def test_a_restore_that_is_killed_is_done_again(
    directory: Path, backup: Path, tmp_path: Path, call: str, number: int
) -> None:
    carry_on(directory, *samples(29, 33))
    kill = Injection(call, "signal=SIGKILL", number)
    restore = ["restore", str(backup), "--lose-newer", "--data-dir", str(directory)]
    subprocess.run(
        [*kill.under(directory, tmp_path / "log"), sys.executable, "-m", "billaged", *restore],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    if (directory / "restore.unfinished").exists():
        ended = fails_to_start(directory)
        assert ended.exit_code == 1
        assert "was broken off half-way: not all files are in their places. Do it again" in ended.stderr
        said = refused("ledger", "restore", backup / "ledger.db", "--data-dir", directory)
        assert "a restore of all of" in said or "a ledger alone cannot go on" in said
    done(*restore)
    assert run("verify", "--data-dir", directory)[0] == 0
    # What was there before is kept, wherever it was by then.
    kept = {len(path.read_bytes()) for path in directory.glob("replaced-*/journal.db")}
    assert kept
    assert not (directory / "restore.unfinished").exists()
    assert not (directory / "restore.partial").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_makes_belongs_to_the_directorys_owner(directory: Path, backup: Path, tmp_path: Path) -> None:
    """Else the daemon could not start, or not write its own backups."""
    nobody = 65534
    for path in (directory, *directory.rglob("*")):
        os.chown(path, nobody, nobody)
    done("ledger", "backup", "--data-dir", directory)
    done("ledger", "restore", backup / "ledger.db", "--data-dir", directory)
    done("restore", backup, "--data-dir", directory)
    owners = {str(path.relative_to(directory)): path.stat().st_uid for path in directory.rglob("*")}
    assert set(owners.values()) == {nobody}, owners


def test_each_command_says_where_to_go_on_when_it_is_the_wrong_one() -> None:
    for arguments, other in (
        (["ledger", "--help"], "billaged backup"),
        (["backup", "--help"], "billaged verify --data-dir"),
        (["restore", "--help"], "billaged ledger restore"),
    ):
        assert other in run(*arguments)[1]


# --- the page ------------------------------------------------------------------------


def test_the_drill_on_the_page_works(directory: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    drill = page.partition("**The drill**")[2].partition("```bash\n")[2].partition("```")[0]
    assert drill.count("billaged ") == 4
    copy, into = tmp_path / "copy", tmp_path / "drill"
    done("backup", "--to", copy, "--data-dir", directory)
    for written, here in (
        ("/backup/billaged-2026-11-21", str(copy)),
        ("/tmp/drill", str(into)),
        # It serves within a second or so; a machine that is busy needs some more.
        ("timeout 30 billaged serve", f"timeout 20 billaged serve > {tmp_path / 'log'} || test $? = 124"),
    ):
        assert written in drill
        drill = drill.replace(written, here)
    command = tmp_path / "bin" / "billaged"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom billaged.cli.main import main\nmain()\n")
    command.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("UNKEY_")}
    ended = subprocess.run(
        ["bash", "-euc", drill],
        env={**clean, "PATH": f"{command.parent}:{clean['PATH']}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ended.returncode == 0, ended
    assert '"serving"' in (tmp_path / "log").read_text()
    assert not into.exists()
