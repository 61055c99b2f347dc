"""The cuts of a data directory: journal positions with a snapshot of the ledger, one compressed file each.

``snapshots/ledger-POSITION.db.gz``; unpacked it is a ledger at that position. Its name inside the gzip file has
the journal's chain there, and gzip's time is when it was taken: a list of cuts needs to unpack nothing.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import struct
import zlib
from pathlib import Path
from typing import IO, Final, NamedTuple

from billaged.ledger.copying import SYNC_BYTES, UNFINISHED_SUFFIX, new_file, sync_early
from billaged.ledger.snapshot import Meanwhile, Snapshot, take_snapshot
from billaged.model.errors import StorageError
from billaged.model.records import CHAIN_BYTES
from billaged.model.time import NANOS

FOLDER_NAME: Final = "snapshots"

_NAME: Final = re.compile(r"ledger-(\d{16})\.db\.gz")
_INSIDE: Final = re.compile(rf"ledger-(\d{{16}})-((?:[0-9a-f]{{{2 * CHAIN_BYTES}}})?)\.db")
# gzip's header, and the name after it (RFC 1952).
_HEADER: Final = struct.Struct("<3sBIxx")
_GZIP: Final = b"\x1f\x8b\x08"
_HAS_NAME: Final = 8
_NAME_BYTES_MAX: Final = 256
_STAGE: Final = "unfinished"
_BLOCK_BYTES: Final = 2**18
_RESTORE: Final = "Restore it from a backup, or replay from another cut ('billaged journal cuts')."


class Cut(NamedTuple):
    """A snapshot by its name: the position of the ledger in it."""

    position: int
    path: Path

    def label(self) -> Label:
        """
        Raises:
            StorageError: it cannot be read, or is none.
        """
        try:
            with self.path.open("rb") as file:
                start = file.read(_HEADER.size + _NAME_BYTES_MAX)
            magic, flags, made_seconds = _HEADER.unpack_from(start)
            inside = _INSIDE.fullmatch(start[_HEADER.size :].partition(b"\0")[0].decode("ascii"))
        except (OSError, struct.error, ValueError) as error:
            raise _damaged(self.path, error) from error
        if magic != _GZIP or not flags & _HAS_NAME or inside is None or int(inside[1]) != self.position:
            raise _damaged(self.path, "it is not what its name says")
        return Label(made_seconds * NANOS, bytes.fromhex(inside[2]))


class Label(NamedTuple):
    """When a snapshot was taken (by the wall clock, to a second), and the journal's chain at its position."""

    made_ns: int
    chain: bytes


def cuts_in(folder: Path) -> list[Cut]:
    """In order."""
    found = []
    for path in folder.glob("ledger-*.db.gz") if folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            found.append(Cut(int(match[1]), path))
    return sorted(found)


def make_cut(ledger: Path, folder: Path, made_ns: int, meanwhile: Meanwhile) -> Cut:
    """Take a snapshot of a ledger, which a daemon may write to; ``made_ns`` is now. One process at a time.

    Raises:
        StorageError: it cannot be taken or written, or there is one of this position.
    """
    stage = folder / _STAGE
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        _remove_leftovers(folder)
        stage.mkdir(mode=0o700)
        try:
            snapshot = take_snapshot(ledger, stage / "ledger.db", stage / "scratch.db", meanwhile)
            (stage / "scratch.db").unlink(missing_ok=True)
            path = folder / f"ledger-{snapshot.position:016d}.db.gz"
            with new_file(path) as (descriptor, _), (stage / "ledger.db").open("rb") as file:
                _pack(file, descriptor, snapshot, made_ns, meanwhile)
            return Cut(snapshot.position, path)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"no snapshot can be written into {folder}: {error.strerror}.") from error


def unpack_cut(cut: Cut, target: Path) -> None:
    """Into a new file.

    Raises:
        StorageError: it is damaged, or cannot be written.
    """
    # An empty file would unpack well.
    cut.label()
    try:
        with gzip.open(cut.path, "rb") as packed, _new(target) as file:
            shutil.copyfileobj(packed, file, _BLOCK_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(cut.path, error) from error


def _pack(file: IO[bytes], descriptor: int, snapshot: Snapshot, made_ns: int, meanwhile: Meanwhile) -> None:
    name = f"ledger-{snapshot.position:016d}-{snapshot.chain.hex()}.db"
    synced_bytes = 0
    with (
        os.fdopen(descriptor, "wb", closefd=False) as raw,
        gzip.GzipFile(filename=name, mode="wb", compresslevel=6, fileobj=raw, mtime=made_ns // NANOS) as packed,
    ):
        while block := file.read(_BLOCK_BYTES):
            packed.write(block)
            if raw.tell() - synced_bytes >= SYNC_BYTES:
                raw.flush()
                sync_early(descriptor)
                synced_bytes = raw.tell()
            meanwhile()


def _remove_leftovers(folder: Path) -> None:
    """What a process left that was killed."""
    shutil.rmtree(folder / _STAGE, ignore_errors=True)
    for leftover in folder.glob(f"ledger-*{UNFINISHED_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def _new(target: Path) -> IO[bytes]:
    return os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def _damaged(path: Path, how: object) -> StorageError:
    return StorageError(f"the snapshot {path} is damaged: {how}.", _RESTORE)
