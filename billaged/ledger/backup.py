"""Backups of a ledger file: what they are called, what one says about itself, and the one before each migration."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from billaged.intake.read_only import read_only_uri
from billaged.ledger.checked import only_row
from billaged.ledger.copying import FULL_SPEED, UNFINISHED_SUFFIX, BytesDone, Pace, copy_database, remove_abandoned
from billaged.model.errors import StorageError

FOLDER_NAME: Final = "backups"

# Before a migration one is kept for whoever has to go back, and two more for whoever notices late.
_KEPT_MIGRATIONS: Final = 3
_OF_A_MIGRATION: Final = re.compile(r"ledger-(?P<revision>\w+)-before-\w+-\d{8}T\d{6}Z\.db")
_ASKED_FOR: Final = re.compile(r"ledger-\d{8}T\d{6}Z\.db")


class LedgerFile(NamedTuple):
    """What a ledger file says about itself. A ledger that no daemon has taken up yet has no journal and no position."""

    schema: str
    journal_id: str
    # Up to this journal row it has folded, in this daemon's life of it.
    position: int
    epoch: int


def look_at(path: Path) -> LedgerFile:
    """Of any schema; says nothing about whether the file is whole.

    Raises:
        StorageError: there is none, or it is no ledger.
    """
    if not path.is_file():
        raise StorageError(f"there is no ledger at {path}.")
    try:
        with closing(sqlite3.connect(read_only_uri(path), uri=True, timeout=30)) as connection:
            schema = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            row = only_row(connection.execute("SELECT journal_id, position, epoch FROM checkpoint LIMIT 2").fetchall())
    except sqlite3.Error as error:
        raise StorageError(f"{path} cannot be read as a ledger: {error}.") from error
    if schema is None:
        raise StorageError(f"{path} cannot be read as a ledger: it has no schema.")
    return LedgerFile(str(schema[0]), *(("", 0, 0) if row is None else row))


def damage_of(path: Path) -> str | None:
    """The first thing that SQLite finds wrong with a file's structure; None where it is well. Reads all of it."""
    try:
        with closing(sqlite3.connect(read_only_uri(path), uri=True, timeout=30)) as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        return str(error)
    return None if found == "ok" else " ".join(str(found).split())


def back_up_for_migration(ledger: Path, schema: str, to_schema: str, tell: Callable[[str], None]) -> Path:
    """Copy a ledger before it is migrated, beside it into a folder; only the newest few such copies stay.

    Raises:
        StorageError: it cannot be copied.
    """
    folder = _folder_of(ledger)
    for leftover in folder.glob(f"ledger-*-before-*{UNFINISHED_SUFFIX}"):
        leftover.unlink(missing_ok=True)
    existing = _of_migrations(folder)
    # A migration that fails and is tried again once a second must not fill the disk.
    if existing and look_at(existing[-1]) == look_at(ledger):
        return existing[-1]
    target = folder / f"ledger-{schema}-before-{to_schema}-{stamp()}.db"

    def told(done: int, total: int) -> None:
        tell(f"copying the ledger before its migration: {done >> 20} of {total >> 20} MiB")

    copy_database(ledger, target, Pace(FULL_SPEED), told)
    _keep_newest([*existing, target], _KEPT_MIGRATIONS)
    return target


def back_up_beside(ledger: Path, pace: Pace, told: BytesDone, keep: int | None) -> Path:
    """Copy a ledger into the folder beside it; with ``keep``, only so many such copies stay. A daemon may write it.

    Raises:
        StorageError: it cannot be copied.
    """
    folder = _folder_of(ledger)
    target = folder / f"ledger-{stamp()}.db"
    for path in folder.glob(f"ledger-*{UNFINISHED_SUFFIX}"):
        # One of a migration is begun and removed by the daemon.
        if _ASKED_FOR.fullmatch(path.name.removesuffix(UNFINISHED_SUFFIX)):
            _remove_abandoned(path)
    existing = sorted(path for path in folder.iterdir() if _ASKED_FOR.fullmatch(path.name))
    copy_database(ledger, target, pace, told)
    if keep is not None:
        _keep_newest([*existing, target], keep)
    return target


def _remove_abandoned(unfinished: Path) -> None:
    try:
        remove_abandoned(unfinished)
    except FileNotFoundError:
        # It has its name by now.
        return
    except OSError as error:
        raise StorageError(f"{unfinished}, which is not finished, cannot be removed: {error.strerror}.") from error


def _folder_of(ledger: Path) -> Path:
    folder = ledger.parent / FOLDER_NAME
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageError(f"the folder {folder} cannot be made: {error.strerror}.") from error
    return folder


def _of_migrations(folder: Path) -> list[Path]:
    """Oldest first."""
    found = [path for path in folder.iterdir() if _OF_A_MIGRATION.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.name.rpartition("-")[2])


def _keep_newest(copies: list[Path], keep: int) -> None:
    for old in copies[: max(0, len(copies) - keep)]:
        old.unlink(missing_ok=True)


def stamp() -> str:
    """This second in UTC, as it stands in names of files."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
