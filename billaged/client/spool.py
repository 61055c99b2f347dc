"""The spool: requests that wait on disk until the server has acknowledged them.

A directory of append-only segments (``segment.py``) and a cursor. What ``append``
returned from survives ``kill -9`` and power loss; it leaves only by ``acknowledge``.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from billaged.client.cursor import Cursor, Position
from billaged.client.damage import DamageFolder, sync_directory
from billaged.client.segment import FRAME_BYTES, HEADER_BYTES, Header, SpoolRecord, frames, pieces
from billaged.model.errors import BillagedError, StorageError
from billaged.model.records import Kind

_log = logging.getLogger(__name__)

MIN_SPOOL_BYTES: Final = 4_096
_MAX_SEGMENT_BYTES: Final = 4 * 2**20


class SpoolRefused(BillagedError):
    """The records were not taken, none of them: no room, or the disk failed. The message says which."""


@dataclass(slots=True)
class _Segment:
    path: Path
    header: Header | None  # None until there is one in the file
    size_bytes: int  # whole frames only; what lies behind is no part of it

    @property
    def generation(self) -> int:
        return self.header.generation if self.header is not None else 0


class Spool:
    """A bounded queue on disk. One process owns it; any of its threads may call."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """Open or create it, and cut off a torn tail.

        ``max_bytes`` bounds the segments; notices (anything but samples) may go an
        eighth over it, so that a start or a stop still finds room when samples do not.

        Raises:
            StorageError: the directory cannot be used, or another agent holds it.
        """
        self.directory = directory
        self.max_bytes = max_bytes
        # How much of it others use; whoever does sets it.
        self.reserved_bytes = 0
        self._damage = DamageFolder(directory)
        self._segment_bytes = min(_MAX_SEGMENT_BYTES, max(MIN_SPOOL_BYTES // 4, max_bytes // 8))
        self._lock = threading.Lock()  # guards everything below
        self._segments: list[_Segment] = []  # oldest first; the last one is appended to
        self._sealed = False  # the last segment takes no more: a write to it failed
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_file = self._hold()
            self._cursor = Cursor(directory / "cursor")
            self._head = self._cursor.read()
            self._load()
        except OSError as error:
            raise StorageError(f"{directory}: cannot be used as a spool: {error.strerror}.") from error

    @property
    def used_bytes(self) -> int:
        with self._lock:
            return sum(segment.size_bytes for segment in self._segments)

    def append(self, records: Sequence[SpoolRecord]) -> None:
        """Make the records durable, in order; all of them or none.

        Raises:
            SpoolRefused: no room, or the disk failed.
        """
        if not records:
            return
        size_bytes = sum(FRAME_BYTES + 1 + len(record.payload) for record in records)
        notices_only = all(record.kind is not Kind.METRICS for record in records)
        limit_bytes = self.max_bytes + (self.max_bytes // 8 if notices_only else 0)
        with self._lock:
            used_bytes = sum(segment.size_bytes for segment in self._segments)
            if used_bytes + self.reserved_bytes + HEADER_BYTES + size_bytes > limit_bytes:
                raise SpoolRefused(f"the spool is full ({self.max_bytes} bytes)")
            try:
                self._write(records)
            except OSError as error:
                # After a failed fsync nobody knows what is on disk, and a second one would lie. The frames
                # before this one are safe; later ones go to another file.
                self._sealed = True
                raise SpoolRefused(f"the spool cannot be written: {error.strerror}") from error

    def peek(self, max_records: int, max_bytes: int) -> tuple[list[SpoolRecord], Position]:
        """The oldest records (at least one, if any wait), and the position that acknowledges them.

        Damaged bytes before that position are set aside, in files of their own.

        Raises:
            OSError: a segment cannot be read, or what is damaged first cannot be set aside.
        """
        records: list[SpoolRecord] = []
        taken_bytes = 0
        with self._lock:
            position = self._head
            for segment in self._segments:
                if segment.header is None:
                    continue
                offset = position.offset if position.generation == segment.generation else HEADER_BYTES
                data = self._read(segment, offset)
                for piece in pieces(data, segment.header.salt, offset):
                    if piece.record is None:
                        if records:
                            return records, position
                        damaged = data[piece.start - offset : piece.end - offset]
                        self._damage.keep(segment.path, segment.generation, piece.start, damaged)
                    else:
                        records.append(piece.record)
                        taken_bytes += len(piece.record.payload)
                    position = Position(segment.generation, piece.end)
                    if len(records) >= max_records or taken_bytes >= max_bytes:
                        return records, position
        return records, position

    def acknowledge(self, position: Position) -> None:
        """Let go of everything before the position."""
        with self._lock:
            if position == self._head:
                return
            self._head = position
            try:
                self._cursor.write(position)
                self._drop_acknowledged()
            except OSError as error:
                # Nothing is lost by it: what stays on disk is sent once more after a restart.
                _log.warning("%s: cannot be tidied up: %s", self.directory, error.strerror)

    def close(self) -> None:
        with self._lock:
            self._cursor.close()
            os.close(self._lock_file)

    def remove(self) -> None:
        """Close it and delete its files, once all is acknowledged. What was set aside stays, with the directory."""
        self.close()
        for path in (*self.directory.glob("*.spool"), self.directory / "cursor", self.directory / "lock"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.directory.rmdir()

    def _drop_acknowledged(self) -> None:
        while len(self._segments) > 1 and self._segments[0].generation < self._head.generation:
            self._segments[0].path.unlink()
            self._segments.pop(0)
        first = self._segments[0] if self._segments else None
        if first is None or Position(first.generation, first.size_bytes) != self._head:
            return
        if len(self._segments) > 1 or self._sealed:
            first.path.unlink()
            self._segments.pop(0)
            self._sealed = self._sealed and bool(self._segments)
        else:
            # Emptied in place: its next header gets a new generation.
            os.truncate(first.path, 0)
            first.header, first.size_bytes = None, 0

    def _hold(self) -> int:
        file = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise StorageError(
                f"{self.directory}: another agent is using this spool.", "Give this one its own with --spool-dir."
            ) from None
        return file

    def _load(self) -> None:
        self._damage.say_what_is_there()
        for path in sorted(self.directory.glob("*.spool")):
            with path.open("rb") as file:
                found = Header.read(file.read(HEADER_BYTES))
            size_bytes = path.stat().st_size
            if size_bytes < HEADER_BYTES:
                path.unlink()  # emptied, or its first write cut short
            elif found is None:
                self._damage.move(path)
            elif found.generation < self._head.generation:
                path.unlink()
            else:
                self._segments.append(_Segment(path, found, size_bytes))
        if self._segments:
            self._cut_tail(self._segments[-1])
        first = self._segments[0] if self._segments else None
        if first is not None and first.generation != self._head.generation:
            self._head = Position(first.generation, HEADER_BYTES)
        # A cursor behind the end can only be a file cut by hand; nothing of it is left to send.
        if first is not None and self._head.offset > first.size_bytes:
            self._head = Position(first.generation, first.size_bytes)
            self._cursor.write(self._head)

    def _cut_tail(self, segment: _Segment) -> None:
        """Cut off an incomplete last frame: nobody was told that what a crash cut short is safe."""
        if segment.header is None:
            return
        data = self._read(segment, HEADER_BYTES)
        for piece in pieces(data, segment.header.salt, HEADER_BYTES):
            if piece.is_torn:
                _log.warning("%s: torn tail of %d bytes cut off", segment.path, piece.end - piece.start)
                os.truncate(segment.path, piece.start)
                segment.size_bytes = piece.start

    def _write(self, records: Sequence[SpoolRecord]) -> None:
        segment = self._writable()
        header = segment.header
        if header is None:
            newest = max((other.generation for other in self._segments), default=0)
            header = Header.new(max(newest, self._head.generation) + 1)
            data = header.data() + frames(header.salt, HEADER_BYTES, records)
        else:
            data = frames(header.salt, segment.size_bytes, records)
        file = os.open(segment.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                written = 0
                while written < len(data):
                    written += os.pwrite(file, data[written:], segment.size_bytes + written)
                os.fsync(file)
            except OSError:
                # Only to leave less for a restart to cut off; what is reported is the first error.
                with contextlib.suppress(OSError):
                    os.ftruncate(file, segment.size_bytes)
                raise
        finally:
            os.close(file)
        is_fresh = segment.header is None
        segment.header, segment.size_bytes = header, segment.size_bytes + len(data)
        if is_fresh:
            sync_directory(self.directory)

    def _writable(self) -> _Segment:
        last = self._segments[-1] if self._segments else None
        if last is not None and not self._sealed and last.size_bytes < self._segment_bytes:
            return last
        if last is not None and last.size_bytes == 0:
            last.path.unlink(missing_ok=True)  # a file in which nothing got durable
            self._segments.pop()
        newest = max((segment.generation for segment in self._segments), default=0)
        number = max(newest, self._head.generation) + 1
        while (path := self.directory / f"{number:020d}.spool").exists():
            number += 1
        self._segments.append(_Segment(path, None, 0))
        self._sealed = False
        return self._segments[-1]

    def _read(self, segment: _Segment, offset: int) -> bytes:
        if segment.size_bytes <= offset:
            return b""
        with segment.path.open("rb") as file:
            file.seek(offset)
            return file.read(segment.size_bytes - offset)
