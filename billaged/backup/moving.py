"""Bytes of a backup on their way: counted, digested, at a pace; room for them, and whose they are."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from billaged.backup.contents import Entry
from billaged.ledger.copying import SYNC_BYTES, sync_early
from billaged.model.errors import StorageError

_CHUNK_BYTES: Final = 2**20

Moved = Callable[[int], None]


class Digesting:
    """A file that is read to its end, whoever reads it, and what it was then."""

    def __init__(self, file: IO[bytes], moved: Moved) -> None:
        """``moved`` hears how many bytes each part had."""
        self._file = file
        self._moved = moved
        self._digest = hashlib.sha256()
        self._bytes = 0

    def read(self, count: int = -1) -> bytes:
        chunk = self._file.read(count)
        self._digest.update(chunk)
        self._bytes += len(chunk)
        self._moved(len(chunk))
        return chunk

    def entry(self, name: str) -> Entry:
        return Entry(name, self._bytes, self._digest.hexdigest())


class SyncedWriter:
    """A descriptor as a file to write to, synced a little at a time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._bytes = 0

    def write(self, content: bytes) -> int:
        left = memoryview(content)
        while left:
            left = left[os.write(self._descriptor, left) :]
        before = self._bytes // SYNC_BYTES
        self._bytes += len(content)
        if self._bytes // SYNC_BYTES != before:
            sync_early(self._descriptor)
        return len(content)


def pour(source: IO[bytes], writer: SyncedWriter | None, name: str, moved: Moved) -> Entry:
    """Read a file to its end, and write it if that is asked for.

    Raises:
        OSError: it cannot be read, or written.
    """
    digesting = Digesting(source, moved)
    while chunk := digesting.read(_CHUNK_BYTES):
        if writer is not None:
            writer.write(chunk)
    return digesting.entry(name)


def check_room(folder: Path, needed_bytes: int, spare_bytes: int = 0) -> None:
    """
    Raises:
        StorageError: its disk has not that much room, with so much to spare.
    """
    try:
        free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        raise StorageError(f"{folder} cannot be used: {error.strerror}.") from error
    if free_bytes < needed_bytes + spare_bytes:
        spare = f", and the daemon needs {spare_bytes >> 20} MiB to stay free" if spare_bytes else ""
        raise StorageError(
            f"the disk of {folder} has {free_bytes >> 20} MiB left: this needs {needed_bytes >> 20} MiB{spare}.",
            "Free space on it, or choose another disk.",
        )


def bytes_of(database: Path) -> int:
    """What a copy of it takes at most: the file, and what its log still has for it. 0 where there is none."""
    log = database.with_name(database.name + "-wal")
    return sum(path.stat().st_size for path in (database, log) if path.exists())


def same_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def give_to_owner_of(directory: Path, *paths: Path) -> None:
    """What root makes for a directory belongs to whom the directory belongs: the daemon has to write it.

    Raises:
        StorageError: it cannot be given.
    """
    if os.geteuid() != 0:
        return
    try:
        owner = directory.stat()
        for path in paths:
            for each in (path, *path.rglob("*")):
                os.chown(each, owner.st_uid, owner.st_gid, follow_symlinks=False)
    except OSError as error:
        raise StorageError(
            f"{error.filename} cannot be given to the owner of {directory}: {error.strerror}.",
            "Run this as that user.",
        ) from error
