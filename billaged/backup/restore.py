"""Putting a backup back: with the daemon down, checked before anything is replaced, and what is replaced is kept."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Final, NamedTuple

from billaged.backup.contents import DATABASES, FOLDERS
from billaged.backup.moving import SyncedWriter, bytes_of, check_room, give_to_owner_of
from billaged.backup.sources import Source
from billaged.directory import DataDirectory
from billaged.intake.journal_file import JournalFile
from billaged.intake.sqlite import FILE_NAME as JOURNAL
from billaged.intake.sqlite import SqliteJournal
from billaged.ledger import database
from billaged.ledger.backup import damage_of, look_at, stamp
from billaged.ledger.copying import FULL_SPEED, BytesDone, Pace, copy_database, new_file, sync_folder
from billaged.ledger.database import FILE_NAME as LEDGER
from billaged.ledger.store import LedgerStore
from billaged.model.errors import StorageError
from billaged.storage import RESTORE_UNFINISHED, check_together

_STAGE: Final = "restore.partial"
# Beside a database where its daemon was killed; they belong to that one file.
LOGS: Final = ("", "-wal", "-shm", "-journal")


class Restored(NamedTuple):
    """What is in place now; positions are journal rows: a start folds those after the ledger's up to the journal's."""

    journal_id: str
    journal_position: int
    ledger_position: int
    # Before it was brought up to date.
    ledger_schema: str
    # The folder with what was there before; None where nothing was.
    set_aside: Path | None


def restore_ledger(data_dir: Path, source: Path, told: BytesDone) -> Restored:
    """Put a ledger's backup beside the journal that it was folded from.

    Raises:
        StorageError: a daemon runs, the backup is damaged, or a start could not go on from it: nothing is changed then.
    """
    if not (data_dir / JOURNAL).exists():
        raise StorageError(
            f"there is no {JOURNAL} in {data_dir}: a ledger alone cannot go on.",
            "Restore a backup of the whole directory ('billaged restore'), or point --data-dir at the daemon's.",
        )
    found = look_at(source)
    database.check_schema(source, found.schema)
    with _staging(data_dir) as stage:
        _refuse_half_restored(data_dir)
        check_room(data_dir, bytes_of(source))
        copy_database(source, stage / LEDGER, Pace(FULL_SPEED), told)
        _refuse_damaged(stage / LEDGER, source)
        positions = _check_usable(data_dir / JOURNAL, stage / LEDGER)
        return Restored(*positions, found.schema, _put_in_place(data_dir, stage, [LEDGER]))


def restore_whole(data_dir: Path, source: Source, told: BytesDone, *, lose_newer: bool) -> Restored:
    """Put a whole backup into a data directory, which need not be there yet.

    ``lose_newer``: also where the journal that is there has rows that the backup's has not.

    Raises:
        StorageError: as ``restore_ledger``; or usage would be lost.
    """
    with _staging(data_dir) as stage:
        manifest = source.unpack(stage, told)
        database.check_schema(Path(source.name), manifest.ledger_schema)
        if not lose_newer:
            _refuse_to_lose(data_dir / JOURNAL, stage / JOURNAL)
        for name in DATABASES:
            _refuse_damaged(stage / name, Path(source.name) / name)
        positions = _check_usable(stage / JOURNAL, stage / LEDGER)
        set_aside = _put_in_place(data_dir, stage, [JOURNAL, LEDGER, *FOLDERS])
        return Restored(*positions, manifest.ledger_schema, set_aside)


@contextmanager
def _staging(data_dir: Path) -> Iterator[Path]:
    """A folder in the data directory, which no daemon can take meanwhile."""
    directory = DataDirectory(data_dir)
    stage = data_dir / _STAGE
    try:
        give_to_owner_of(data_dir, *data_dir.glob("lock"))
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(mode=0o700)
        yield stage
    except OSError as error:
        raise StorageError(f"{error.filename or data_dir} cannot be used: {error.strerror}.") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        directory.release()


def _refuse_damaged(path: Path, said: Path) -> None:
    if (damage := damage_of(path)) is not None:
        raise StorageError(f"{said} is damaged: {damage}.", "Take another backup.")


def _check_usable(journal_path: Path, ledger_path: Path) -> tuple[str, int, int]:
    """What a start does with them up to the fold: the ledger is of this version's schema after it.

    Returns the journal's id, its position and the ledger's.
    """
    journal = SqliteJournal(journal_path)
    try:
        with closing(LedgerStore(database.open_for_writing(ledger_path, backup=False), journal.journal_id)) as ledger:
            check_together(journal, ledger.checkpoint())
            return journal.journal_id, journal.position, ledger.checkpoint().position
    finally:
        journal.close()


def _refuse_half_restored(data_dir: Path) -> None:
    unfinished = data_dir / RESTORE_UNFINISHED
    if unfinished.exists() and JOURNAL in unfinished.read_text().split():
        raise StorageError(
            f"a restore of all of {data_dir} was broken off half-way.", "Do that one again ('billaged restore')."
        )


def _refuse_to_lose(current: Path, backup: Path) -> None:
    """Where the journal is still whole, more is lost by putting back an older one than by going on."""
    if not current.exists():
        return
    try:
        with closing(JournalFile(current)) as journal:
            journal_id, head = journal.journal_id, journal.head()
    except (StorageError, sqlite3.Error):
        # It is damaged: that is what backups are for.
        return
    with closing(JournalFile(backup)) as journal:
        if journal_id == journal.journal_id and head.sequence <= journal.end():
            rows = [row for rows in journal.rows(head.sequence - 1, head.sequence) for row in rows]
            if not rows or rows[0].chain == head.chain:
                return
        position = journal.end()
    raise StorageError(
        f"the journal that is there goes up to row {head.sequence}, and the backup's up to row {position} does not hold"
        " all of that: usage that was acknowledged since would be lost.",
        "Where only the ledger is damaged, restore only that ('billaged ledger restore'). To do it all the same give"
        " --lose-newer: what is replaced is kept.",
    )


def _put_in_place(data_dir: Path, stage: Path, names: list[str]) -> Path | None:
    """Set aside what is there and move in what is staged. Broken off, a start is refused until it is done again."""
    for staged in stage.rglob("*"):
        staged.chmod(0o700 if staged.is_dir() else 0o600)
    give_to_owner_of(data_dir, stage)
    there = [path for name in names for log in LOGS if (path := data_dir / (name + log)).exists()]
    set_aside = unused(data_dir / f"replaced-{stamp()}")
    if there:
        set_aside.mkdir(mode=0o700)
        give_to_owner_of(data_dir, set_aside)
    unfinished = data_dir / RESTORE_UNFINISHED
    if not unfinished.exists():
        with new_file(unfinished) as (descriptor, _):
            SyncedWriter(descriptor).write(" ".join(names).encode())
    for path in there:
        path.rename(set_aside / path.name)
    for name in names:
        if (stage / name).exists():
            (stage / name).rename(data_dir / name)
    for folder in (set_aside, data_dir) if there else (data_dir,):
        sync_folder(folder)
    unfinished.unlink()
    sync_folder(data_dir)
    return set_aside if there else None


def unused(path: Path) -> Path:
    """There may be one of the same second."""
    names = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(each for each in chain([path], names) if not each.exists())
