"""Segments: what left the journal, compressed, one JSON line a row. Readable without billaged.

A segment is written whole, synced, and only then do its rows leave the journal; a
crash in between leaves a segment that the next run writes again, the same.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from billaged.intake.journal import Journal, JournalRow
from billaged.model.errors import StorageError
from billaged.model.time import HOUR_NANOS

FOLDER_NAME: Final = "segments"

_NAME: Final = re.compile(r"journal-(\d{16})-(\d{16})\.jsonl\.gz")
_ROWS: Final = 50_000
_BYTES: Final = 64 * 2**20
_CHUNK_ROWS: Final = 4_096
# A segment that is not full waits this long for more rows: a quiet daemon writes few files.
_PATIENCE_NANOS: Final = HOUR_NANOS


class Segments:
    """The segment files of one data directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def archive(self, journal: Journal, after: int, through: int, received_before_ns: int, *, keep: bool = True) -> int:
        """Write the journal's rows after a sequence, up to another and to a time, into one segment.

        Returns the last sequence in it: rows up to there may leave the journal. 0 where
        too few qualify yet to be worth a file. ``keep=False`` writes none.
        """
        rows = self._oldest(journal, after, through, received_before_ns)
        if not rows or (len(rows) < _ROWS and rows[0].received_ns >= received_before_ns - _PATIENCE_NANOS):
            return 0
        if keep:
            self._write(rows)
        return rows[-1].sequence

    def _write(self, rows: list[JournalRow]) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        name = f"journal-{rows[0].sequence:016d}-{rows[-1].sequence:016d}.jsonl.gz"
        unfinished = self._folder / f"{name}.tmp"
        with unfinished.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            # No time stamp in it: the same rows give the same bytes.
            with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6, mtime=0, filename="") as packed:
                for row in rows:
                    packed.write(_line(row))
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(self._folder / name)
        _sync_folder(self._folder)

    def _oldest(self, journal: Journal, after: int, through: int, received_before_ns: int) -> list[JournalRow]:
        rows: list[JournalRow] = []
        size = 0
        for chunk in journal.read(after):
            for row in chunk:
                # The first row that must stay ends the segment: the journal never has holes.
                if row.sequence > through or row.received_ns >= received_before_ns:
                    return rows
                rows.append(row)
                size += len(row.payload)
                if len(rows) >= _ROWS or size >= _BYTES:
                    return rows
        return rows

    def remove_older(self, written_before_seconds: float) -> int:
        """Delete segments written before a time (seconds since the epoch); how many went."""
        old = [path for _, _, path in self._files() if path.stat().st_mtime < written_before_seconds]
        for path in old:
            path.unlink()
        return len(old)

    def read(self, after: int, through: int) -> Iterator[list[JournalRow]]:
        """The rows of (after, through] in order, in chunks.

        Raises:
            StorageError: a segment is missing or damaged; the message names it.
        """
        next_sequence = after + 1
        for first, last, path in self._files():
            if last < next_sequence:
                continue
            if first > next_sequence or next_sequence > through:
                break
            for rows in _read_file(path):
                wanted = [row for row in rows if next_sequence <= row.sequence <= through]
                for row in wanted:
                    if row.sequence != next_sequence:
                        raise StorageError(f"the segment {path} lacks row {next_sequence}.", "Restore it.")
                    next_sequence += 1
                if wanted:
                    yield wanted
        if next_sequence <= through:
            raise StorageError(
                f"no segment in {self._folder} holds journal row {next_sequence}.",
                "Restore the segment files; rows that left the journal are nowhere else.",
            )

    def _files(self) -> list[tuple[int, int, Path]]:
        """First and last sequence and path of each segment, in order; of two that begin alike the longer one last."""
        found = []
        for path in self._folder.glob("journal-*.jsonl.gz") if self._folder.is_dir() else ():
            if match := _NAME.fullmatch(path.name):
                found.append((int(match[1]), int(match[2]), path))
        return sorted(found)


def _line(row: JournalRow) -> bytes:
    fields = row._asdict()
    fields["payload"] = base64.b64encode(row.payload).decode()
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _read_file(path: Path) -> Iterator[list[JournalRow]]:
    rows: list[JournalRow] = []
    try:
        with gzip.open(path, "rb") as packed:
            for line in packed:
                fields = json.loads(line)
                fields["payload"] = base64.b64decode(fields["payload"], validate=True)
                rows.append(JournalRow(**fields))
                if len(rows) == _CHUNK_ROWS:
                    yield rows
                    rows = []
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError) as error:
        raise StorageError(f"the segment {path} is damaged: {error}.", "Restore it from a backup.") from error
    yield rows


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
