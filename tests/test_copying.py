"""A new file: nobody else's, and never the one that another process has just finished."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from billaged.ledger import copying
from billaged.ledger.backup import back_up_beside
from billaged.ledger.copying import FULL_SPEED, Pace, copy_database, new_file, own_folder
from billaged.ledger.database import open_for_writing
from billaged.model.errors import StorageError


def test_what_another_process_finishes_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "copy.db"
    finishing = new_file(target)
    descriptor, _ = finishing.__enter__()
    os.write(descriptor, b"all of it")
    lock = fcntl.flock

    def lock_later(number: int, operation: int) -> None:
        # The other one ends between the opening of its file and the lock.
        monkeypatch.setattr(copying.fcntl, "flock", lock)
        finishing.__exit__(None, None, None)
        lock(number, operation)

    monkeypatch.setattr(copying.fcntl, "flock", lock_later)
    with pytest.raises(StorageError, match="by another process"), new_file(target):
        pass
    assert target.read_bytes() == b"all of it"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_has_another_name_too_is_not_written(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"theirs")
    os.link(theirs, tmp_path / "copy.db.partial")
    with pytest.raises(StorageError, match="somebody else's"), new_file(tmp_path / "copy.db"):
        pass
    assert theirs.read_bytes() == b"theirs"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_not_written(tmp_path: Path) -> None:
    theirs = tmp_path / "copy.db.partial"
    theirs.write_bytes(b"theirs")
    os.chown(theirs, 65534, 65534)
    with pytest.raises(StorageError, match="somebody else's"), new_file(tmp_path / "copy.db"):
        pass
    assert theirs.read_bytes() == b"theirs"


def test_what_a_kill_has_left_is_closed_to_others(tmp_path: Path) -> None:
    (tmp_path / "copy.db.partial").touch(0o666)
    with new_file(tmp_path / "copy.db") as (descriptor, _):
        os.write(descriptor, b"all of it")
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600


def test_what_killed_backups_have_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    engine = open_for_writing(tmp_path / "ledger.db")
    engine.dispose()
    folder = tmp_path / "backups"
    folder.mkdir()
    left, other = folder / "ledger-20261101T000000Z.db.partial", folder / "ledger.db.partial"
    left.touch()
    other.touch()
    with new_file(folder / "ledger-20261102T000000Z.db"):
        made = back_up_beside(tmp_path / "ledger.db", Pace(FULL_SPEED), lambda *_: None, keep=None)
        assert set(folder.iterdir()) == {made, other, folder / "ledger-20261102T000000Z.db.partial"}


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_a_copy_is_never_taken_for_a_databases_log(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(StorageError, match="SQLite's own"):
        copy_database(tmp_path / "ledger.db", tmp_path / f"journal.db{suffix}", Pace(FULL_SPEED), lambda *_: None)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_backups_were_killed_in_go_and_those_in_use_stay(tmp_path: Path) -> None:
    abandoned, just_made, foreign = (tmp_path / f".billaged-backup-{name}" for name in ("abandoned", "new", "foreign"))
    for folder in (abandoned, just_made, foreign):
        folder.mkdir()
        (folder / "ledger.db").touch()
    with own_folder(tmp_path) as in_use:
        for folder in (abandoned, foreign, in_use):
            os.utime(folder, (0, 0))
        if os.geteuid() == 0:
            os.chown(foreign, 65534, 65534)
        else:
            os.utime(foreign)
        with own_folder(tmp_path) as another:
            assert set(tmp_path.iterdir()) == {just_made, foreign, in_use, another}
    assert set(tmp_path.iterdir()) == {just_made, foreign}
