"""A backup of the ledger alone, while its daemon runs: where it may go, and room for it."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import gettempdir
from typing import IO, NamedTuple

from billaged.backup.moving import bytes_of, check_room, give_to_owner_of, same_disk
from billaged.ledger.backup import FOLDER_NAME, LedgerFile, back_up_beside, look_at
from billaged.ledger.copying import BytesDone, Pace, copy_database, own_folder
from billaged.ledger.database import FILE_NAME
from billaged.model.errors import StorageError


class Copied(NamedTuple):
    """``path`` is None for a stream."""

    path: Path | None
    bytes: int
    found: LedgerFile


def copy_beside(data_dir: Path, keep: int | None, spare_bytes: int, pace: Pace, told: BytesDone) -> Copied:
    """Into the data directory's folder of backups, where only the newest ``keep`` stay.

    Raises:
        StorageError: the ledger cannot be read, the copy not be written, or there is no room for it.
    """
    source = data_dir / FILE_NAME
    look_at(source)
    check_room(data_dir, bytes_of(source), spare_bytes)
    path = back_up_beside(source, pace, told, keep)
    give_to_owner_of(data_dir, data_dir / FOLDER_NAME)
    return _copied(path, path)


def copy_to_file(data_dir: Path, target: Path, spare_bytes: int, pace: Pace, told: BytesDone) -> Copied:
    """Into a new file.

    Raises:
        StorageError: as ``copy_beside``.
    """
    source = data_dir / FILE_NAME
    look_at(source)
    _check_room(source, target.absolute().parent, spare_bytes)
    copy_database(source, target, pace, told)
    return _copied(target, target)


def copy_to_stream(data_dir: Path, stream: IO[bytes], spare_bytes: int, pace: Pace, told: BytesDone) -> Copied:
    """To a stream, once a copy is made in the folder for temporary files.

    Raises:
        StorageError: as ``copy_beside``.
    """
    source = data_dir / FILE_NAME
    look_at(source)
    _check_room(source, Path(gettempdir()), spare_bytes)
    try:
        with own_folder(Path(gettempdir())) as folder:
            path = folder / FILE_NAME
            copy_database(source, path, pace, told)
            with path.open("rb") as copy:
                shutil.copyfileobj(copy, stream)
            stream.flush()
            return _copied(path, None)
    except OSError as error:
        raise StorageError(f"the backup cannot be written: {error.strerror}.") from error


def _check_room(source: Path, folder: Path, spare_bytes: int) -> None:
    if not folder.is_dir():
        raise StorageError(f"there is no folder {folder}.", "Make it first.")
    check_room(folder, bytes_of(source), spare_bytes if same_disk(folder, source.parent) else 0)


def _copied(path: Path, said: Path | None) -> Copied:
    return Copied(said, path.stat().st_size, look_at(path))
