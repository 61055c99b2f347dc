"""Where a backup of a data directory comes from: a folder, or a tar stream. Unpacked, it is checked whole."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Final, Protocol

from billaged.backup.contents import FOLDERS, MANIFEST, Entry, Manifest, check_files, is_known, read_manifest
from billaged.backup.moving import SyncedWriter, check_room, pour
from billaged.ledger.copying import BytesDone, new_file
from billaged.model.errors import StorageError
from billaged.settings.kinds import printable

_MANIFEST_BYTES_MAX: Final = 64 * 2**20
_ANOTHER: Final = "Take another backup."


class Source(Protocol):
    @property
    def name(self) -> str:
        """As it is called to a person."""

    def unpack(self, into: Path, told: BytesDone) -> Manifest:
        """Put its files into a folder, synced, and check each.

        Raises:
            StorageError: it is no backup, is not whole, or does not fit there.
        """


class FromFolder:
    """As ``targets.Folder`` wrote it, or ``tar`` unpacked it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = str(path)

    def unpack(self, into: Path, told: BytesDone) -> Manifest:
        try:
            text = (self._path / MANIFEST).read_bytes()
        except OSError as error:
            raise StorageError(
                f"{self.name} is no backup of a data directory, or was not finished: it has no {MANIFEST}."
            ) from error
        manifest = read_manifest(text, self.name)
        check_room(into, manifest.bytes)
        counted = _counted(told, manifest.bytes)
        found = []
        for entry in manifest.files:
            path = self._path / entry.name
            # To open a pipe would wait for somebody to write to it.
            if not path.is_file():
                raise StorageError(f"{self.name} lacks {entry.name}.", _ANOTHER)
            with path.open("rb") as reader:
                found.append(_take(reader, into, entry.name, counted))
        check_files(manifest, found, self.name)
        return manifest


class FromTar:
    """As ``targets.Tar`` wrote it; also where a program has compressed it since (gzip, bzip2, xz)."""

    def __init__(self, stream: IO[bytes], name: str, size_bytes: int) -> None:
        """``size_bytes`` is 0 where nobody knows."""
        self._stream = stream
        self.name = name
        self._size_bytes = size_bytes

    def unpack(self, into: Path, told: BytesDone) -> Manifest:
        check_room(into, self._size_bytes)
        counted = _counted(told, self._size_bytes)
        manifest, found = None, []
        try:
            with tarfile.open(fileobj=self._stream, mode="r|*") as archive:
                for member in archive:
                    name = _name_of(member)
                    content = archive.extractfile(member) if name else None
                    if content is None:
                        continue
                    if name == MANIFEST:
                        manifest = read_manifest(content.read(_MANIFEST_BYTES_MAX), self.name)
                    elif is_known(name):
                        found.append(_take(content, into, name, counted))
                    else:
                        stray = printable(member.name)
                        raise StorageError(f"{self.name} is no backup of a data directory: it has {stray}.")
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise StorageError(f"{self.name} is no backup, or not all of it: {error}.", _ANOTHER) from error
        if manifest is None:
            raise StorageError(
                f"{self.name} is no backup of a data directory, or was not finished: it has no {MANIFEST}."
            )
        check_files(manifest, found, self.name)
        return manifest


def _name_of(member: tarfile.TarInfo) -> str:
    """Below the data directory, whatever the folder that it was packed in is called; empty for a folder."""
    if not member.isfile():
        return ""
    parts = PurePosixPath(member.name).parts
    return "/".join(parts[-2:] if len(parts) > 1 and parts[-2] in FOLDERS else parts[-1:])


def _take(reader: IO[bytes], into: Path, name: str, counted: Callable[[int], None]) -> Entry:
    target = into / name
    target.parent.mkdir(mode=0o700, exist_ok=True)
    with new_file(target) as (descriptor, _):
        return pour(reader, SyncedWriter(descriptor), name, counted)


def _counted(told: BytesDone, total: int) -> Callable[[int], None]:
    done = 0

    def moved(count: int) -> None:
        nonlocal done
        done += count
        told(done, max(done, total))

    return moved
