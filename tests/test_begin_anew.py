"""``billaged journal begin-anew``: a journal is lost, its ledger is whole; from the refused start to the next bill."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from backup_fixtures import (
    LEFT,
    RECEIVED_LONG_AFTER,
    RECORDS,
    carry_on,
    change,
    data_directory,
    files_of,
    refused,
    run,
    samples,
)
from daemon_calls import SECOND, batch
from daemon_process import ROOT, DaemonProcess, fails_to_start, ledger_of
from faults.injected import Injection
from old_ledgers import OLDER, old_ledger

from billaged.directory import DataDirectory
from billaged.intake.journal_file import JournalFile
from billaged.intake.segments import Segments
from billaged.intake.sqlite import SqliteJournal
from billaged.model.errors import StorageError
from billaged.storage import open_stores
from billaged.wire.billing.v1 import billing_pb2 as pb

ROWS = len(RECORDS)
COMMAND = "billaged journal begin-anew"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return data_directory(tmp_path / "var")


def start_refused(directory: Path) -> str:
    """What a start says, up to the fold."""
    held = DataDirectory(directory)
    try:
        with pytest.raises(StorageError) as error:
            open_stores(held)
        return str(error.value)
    finally:
        held.release()


def begun(directory: Path) -> dict[str, Any]:
    code, out, err = run("journal", "begin-anew", "--yes", "--json", "--data-dir", directory)
    assert code == 0, err
    return dict(json.loads(out))


def cut_off(directory: Path) -> None:
    change(directory / "journal.db", "DELETE FROM journal WHERE sequence > 25")


def put_back_older(directory: Path) -> None:
    cut_off(directory)
    change(directory / "journal.db", "UPDATE sqlite_sequence SET seq = 25")


def lose(directory: Path) -> None:
    (directory / "journal.db").unlink()


def empty(directory: Path) -> None:
    (directory / "journal.db").write_bytes(b"")


def overwrite(directory: Path) -> None:
    (directory / "journal.db").write_bytes(b"what is left of it" * 1000)


def change_last(directory: Path) -> None:
    change(directory / "journal.db", f"UPDATE journal SET chain = zeroblob(32) WHERE sequence = {ROWS}")


@pytest.mark.parametrize("damage", [cut_off, put_back_older, lose, empty, overwrite, change_last])
def test_it_goes_on_as_if_nothing_had_been_but_for_the_proof(
    directory: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    shutil.copytree(directory, tmp_path / "well")
    bill = ledger_of(directory)
    damage(directory)
    left = files_of(directory).get("journal.db")
    assert COMMAND in start_refused(directory)
    made = begun(directory)
    assert (made["begins_after"], made["first_lost"], made["rows_unbilled"]) == (ROWS, LEFT + 1, 0)
    assert (left is None) == (made["set_aside"] is None)
    if left is not None:
        assert (directory / made["set_aside"] / "journal.db").read_bytes() == left
    assert ledger_of(directory) == bill
    for when in ("at once", "after more usage"):
        code, out, err = run("verify", "--data-dir", directory)
        assert code == 0, (when, out, err)
        assert f"rows {LEFT + 1} to {ROWS} are lost, so no replay proves what the ledger has of them" in out
        assert f"the replay began at the cut at {ROWS}" in out
        code, out, _ = run("journal", "verify", "--data-dir", directory, "--head", made["head"])
        assert code == 0
        assert out.endswith("the journal is whole, but for the rows that are lost\n")
        for each in (directory, tmp_path / "well"):
            carry_on(each, *samples(29, 35))
    assert ledger_of(directory) == ledger_of(tmp_path / "well")
    assert run("journal", "replay", "--data-dir", directory)[0] == 0
    page = json.loads(run("verify", "--format", "json", "--data-dir", directory)[1])
    assert [(each["first_lost"], each["after"]) for each in page["begun_anew"]] == [(LEFT + 1, ROWS)]


def test_what_was_lost_stays_known_when_later_rows_have_left_and_other_holes_are_named(directory: Path) -> None:
    lose(directory)
    begun(directory)
    carry_on(directory, *samples(29, 40))
    with closing(SqliteJournal(directory / "journal.db")) as journal:
        assert Segments(directory / "segments").archive(journal, ROWS, ROWS + 6, RECEIVED_LONG_AFTER) == ROWS + 6
        journal.prune(ROWS + 6)
    assert run("verify", "--data-dir", directory)[0] == 0
    change(directory / "journal.db", "UPDATE begun_anew SET first_lost = first_lost + 2")
    code, _, err = run("journal", "verify", "--data-dir", directory)
    assert code == 1
    assert f"journal rows {LEFT + 1} to {LEFT + 2} are in no segment" in err


def test_it_can_happen_again(directory: Path) -> None:
    lose(directory)
    begun(directory)
    carry_on(directory, *samples(29, 40))
    change(directory / "journal.db", f"DELETE FROM journal WHERE sequence > {ROWS + 3}")
    assert begun(directory)["begins_after"] == ROWS + 12
    code, out, err = run("verify", "--data-dir", directory)
    assert code == 0, err
    assert f"rows {LEFT + 1} to {ROWS} are lost" in out
    assert f"rows {ROWS + 1} to {ROWS + 12} are lost" in out


def test_rows_that_were_acknowledged_and_are_nowhere_are_said(directory: Path) -> None:
    carry_on(directory, *samples(29, 33))
    older = data_directory(directory.parent / "older")
    shutil.copy(older / "ledger.db", directory)
    change(directory / "journal.db", f"DELETE FROM journal WHERE sequence > {ROWS}")
    code, _, err = run("journal", "begin-anew", "--yes", "--data-dir", directory)
    assert code == 0
    assert f"rows {ROWS + 1} to {ROWS + 5} were acknowledged and are nowhere: they will not be billed" in err
    code, out, _ = run("verify", "--data-dir", directory)
    assert code == 0
    assert f"rows {ROWS + 1} to {ROWS + 5} of before were acknowledged, and are in no bill" in out


def spoil_the_page_of(journal: Path, sequence: int) -> None:
    with closing(sqlite3.connect(journal)) as connection:
        [(payload,)] = connection.execute("SELECT payload FROM journal WHERE sequence = ?", (sequence,))
        [(page_bytes,)] = connection.execute("PRAGMA page_size")
    content = bytearray(journal.read_bytes())
    begins = content.index(payload) // page_bytes * page_bytes
    content[begins : begins + page_bytes] = bytes(page_bytes)
    journal.write_bytes(content)


def test_a_page_that_cannot_be_read_is_no_loss_where_the_ledger_has_it(directory: Path, tmp_path: Path) -> None:
    carry_on(directory, *samples(29, 300))
    ahead = shutil.copytree(directory, tmp_path / "ahead")
    change(directory / "journal.db", "DELETE FROM journal WHERE sequence > 290")
    spoil_the_page_of(directory / "journal.db", 100)
    code, _, err = run("journal", "begin-anew", "--yes", "--data-dir", directory)
    assert (code, "nobody can tell" in err) == (0, False), err
    assert run("verify", "--data-dir", directory)[0] == 0
    # In the other one rows around it are still there to be folded.
    shutil.copy(data_directory(tmp_path / "older") / "ledger.db", ahead)
    spoil_the_page_of(ahead / "journal.db", 200)
    said = no_refusal_changes_anything(ahead)
    assert f"rows after {ROWS}, up to which the ledger has folded, would be lost" in said
    assert "move the journal away yourself" in said


def test_what_nobody_can_tell_is_said(directory: Path) -> None:
    lose(directory)
    code, _, err = run("journal", "begin-anew", "--yes", "--data-dir", directory)
    assert code == 0
    assert f"nobody can tell how far it went: rows after {ROWS}, if any were acknowledged, will not be billed" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_makes_is_the_daemons(tmp_path: Path) -> None:
    # It is copied before it is brought up to date.
    old_ledger(tmp_path / "ledger.db", OLDER[-1])
    os.chown(tmp_path, 65534, 65534)
    begun(tmp_path)
    [copy] = (tmp_path / "backups").iterdir()
    for path in (copy.parent, copy, tmp_path / "journal.db"):
        assert path.stat().st_uid == 65534, path


# --- what is refused -----------------------------------------------------------------


def no_refusal_changes_anything(directory: Path) -> str:
    before = files_of(directory)
    said = refused("journal", "begin-anew", "--yes", "--data-dir", directory)
    assert files_of(directory) == before
    return said


def test_where_nothing_is_lost_there_is_nothing_to_do(directory: Path) -> None:
    assert "nothing is lost, and a start folds the 0 rows after it" in no_refusal_changes_anything(directory)
    older = data_directory(directory.parent / "older")
    carry_on(directory, *samples(29, 33))
    shutil.copy(older / "ledger.db", directory)
    assert "a start folds the 5 rows after it. Start the daemon." in no_refusal_changes_anything(directory)


def test_rows_that_the_ledger_has_not_are_not_given_up(directory: Path, tmp_path: Path) -> None:
    older = data_directory(tmp_path / "older")
    carry_on(directory, *samples(29, 33))
    shutil.copy(older / "ledger.db", directory)
    change(directory / "journal.db", f"DELETE FROM journal WHERE sequence = {ROWS + 1}")
    said = no_refusal_changes_anything(directory)
    assert f"has 4 rows after {ROWS}, up to {ROWS + 5}, that the ledger has not folded: they would be lost" in said
    assert "move the journal away yourself" in said
    # The same numbers, but usage of its own.
    one, other = (data_directory(tmp_path / name) for name in ("one", "other"))
    carry_on(one, *samples(29, 33))
    carry_on(other, *samples(29, 33, "b"))
    shutil.copy(other / "journal.db", one)
    assert "is not the one that the ledger has folded: rows of it would be lost" in no_refusal_changes_anything(one)
    with closing(SqliteJournal(other / "journal.db")) as journal:
        journal.prune(ROWS + 4)
    shutil.copy(older / "ledger.db", other)
    assert f"rows {ROWS + 1} to {ROWS + 5} of the journal" in no_refusal_changes_anything(other)


def test_rows_that_have_left_into_segments_are_not_given_up_either(directory: Path, tmp_path: Path) -> None:
    older = data_directory(tmp_path / "older")
    carry_on(directory, *samples(29, 33))
    with closing(SqliteJournal(directory / "journal.db")) as journal:
        assert Segments(directory / "segments").archive(journal, LEFT, ROWS + 4, RECEIVED_LONG_AFTER) == ROWS + 4
        journal.prune(ROWS + 4)
    shutil.copy(older / "ledger.db", directory)
    lose(directory)
    assert f"rows {ROWS + 1} to {ROWS + 4} are in {directory / 'segments'} and not in this ledger" in (
        no_refusal_changes_anything(directory)
    )


def test_another_journal(directory: Path, tmp_path: Path) -> None:
    for path in directory.glob("journal.db*"):
        path.unlink()
    SqliteJournal(directory / "journal.db").close()
    assert begun(directory)["begins_after"] == ROWS
    (tmp_path / "another").mkdir()
    carry_on(tmp_path / "another", *RECORDS)
    shutil.copy(tmp_path / "another" / "journal.db", directory)
    assert "is another journal" in no_refusal_changes_anything(directory)


def test_a_ledger_that_cannot_go_on_is_no_beginning(directory: Path, tmp_path: Path) -> None:
    assert "there is no ledger at" in refused("journal", "begin-anew", "--yes", "--data-dir", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    lose(directory)
    change(directory / "ledger.db", "DELETE FROM checkpoint")
    assert "nothing was folded into the ledger" in no_refusal_changes_anything(directory)


def test_nobody_is_asked_where_nobody_is(directory: Path) -> None:
    lose(directory)
    before = files_of(directory)
    code, _, err = run("journal", "begin-anew", "--data-dir", directory)
    assert code == 2
    assert "the journal cannot go on: it is not there" in err
    assert "nothing has changed. Give --yes" in err
    assert files_of(directory) == before


# --- a real daemon, and kills --------------------------------------------------------


def test_a_daemon_goes_on_behind_its_ledger(tmp_path: Path) -> None:
    directory, now = tmp_path / "var", time.time_ns()
    with DaemonProcess(directory) as daemon:
        daemon.call("NotifyVmStarted", pb.NotifyVmStartedRequest(vm_id="a", customer_id="acme", start_time=now))
        daemon.call("SendMetricsBatch", batch("a", *(now + ago * SECOND for ago in (1, 2, 3))))
        assert COMMAND.split()[-1] in run("journal", "--help")[1]
        assert "is held by another billaged" in refused("journal", "begin-anew", "--yes", "--data-dir", directory)
        assert daemon.stop() == 0
    with closing(JournalFile(directory / "journal.db")) as journal:
        end = journal.end()
    change(directory / "journal.db", f"DELETE FROM journal WHERE sequence > {end - 2}")
    ended = fails_to_start(directory)
    assert ended.exit_code == 1
    assert COMMAND in ended.stderr
    code, out, err = run("journal", "verify", "--data-dir", directory)
    assert code == 1
    assert COMMAND in out
    code, out, err = run("verify", "--data-dir", directory)
    assert code == 1
    assert COMMAND in err
    assert begun(directory)["first_lost"] == 1
    with DaemonProcess(directory) as daemon:
        told = daemon.wait_for(lambda line: line["message"] == "the journal was begun anew", "that it was")
        assert (told["logger"], told["after"], told["first_lost"]) == ("billaged.audit", end, 1)
        # What is sent twice counts once: the ledger knows it still.
        daemon.call("SendMetricsBatch", batch("a", *(now + ago * SECOND for ago in (2, 3, 4, 5))))
        assert daemon.stop() == 0
    tables = ledger_of(directory)
    [session] = tables["sessions"]
    assert 5 * SECOND in session
    # Nothing was taken meanwhile, also where no row says until when something was.
    assert ["billaged_down" in silence for silence in tables["silences"]] == [True]
    code, out, err = run("verify", "--data-dir", directory)
    assert code == 0, out + err


@pytest.mark.parametrize(("call", "number"), [("rename", number) for number in (1, 2, 3, 4, 5, 6)])
def test_one_that_is_killed_is_finished(directory: Path, tmp_path: Path, call: str, number: int) -> None:
    overwrite(directory)
    (directory / "journal.db-wal").write_bytes(b"the last rows")
    arguments = ["journal", "begin-anew", "--yes", "--data-dir", str(directory)]
    kill = Injection(call, "signal=SIGKILL", number).under(directory, tmp_path / "log")
    subprocess.run(
        [*kill, sys.executable, "-m", "billaged", *arguments],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    if run(*arguments)[0] != 0:
        # All was done.
        assert "nothing is lost" in refused(*arguments)
    [kept] = directory.glob("replaced-*")
    assert {"journal.db", "journal.db-wal"} <= {path.name for path in kept.iterdir()}
    assert not list(directory.glob("journal.db.*"))
    assert run("verify", "--data-dir", directory)[0] == 0
