"""Segments: what left the journal, compressed, one JSON line a row. Readable without billaged.

A segment is written whole, synced, and only then do its rows leave the journal; a
crash in between leaves a segment that the next run writes again, the same.

Times here come from the wall clock, which may be wrong: nothing is deleted for good before
an hour of readings has shown no step, and what was stamped with a time to come blocks nothing.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from billaged.intake.clock import Steadiness, awake_and_asleep_nanos
from billaged.intake.journal import Journal, JournalRow
from billaged.model.errors import StorageError
from billaged.model.time import HOUR_NANOS, MINUTE_NANOS, NANOS

FOLDER_NAME: Final = "segments"

_NAME: Final = re.compile(r"journal-(\d{16})-(\d{16})\.jsonl\.gz")
_ROWS: Final = 50_000
_BYTES: Final = 64 * 2**20
_CHUNK_ROWS: Final = 4_096
# A segment that is not full waits this long for more rows: a quiet daemon writes few files.
_PATIENCE_NANOS: Final = HOUR_NANOS
# Stamped later than this after now: the clock was wrong then.
_FUTURE_NANOS: Final = 5 * MINUTE_NANOS


class Segments:
    """The segment files of one data directory."""

    def __init__(
        self,
        folder: Path,
        wall_nanos: Callable[[], int] = time.time_ns,
        passed_nanos: Callable[[], int] = awake_and_asleep_nanos,
    ) -> None:
        """``passed_nanos``: a clock that never steps."""
        self._folder = folder
        self._wall_nanos = wall_nanos
        self._archive_time = Steadiness(passed_nanos)
        self._removal_time = Steadiness(passed_nanos)

    def archive(self, journal: Journal, after: int, through: int, received_before_ns: int, *, keep: bool = True) -> int:
        """Write the journal's rows after a sequence, up to another and to a time, into one segment.

        Returns the last sequence in it: rows up to there may leave the journal. 0 where
        too few qualify yet to be worth a file. ``keep=False`` writes none: the rows are gone for
        good then, so none qualify before the time has gone on steadily for an hour.
        """
        if not self._archive_time.holds(received_before_ns) and not keep:
            return 0
        rows = self._oldest(journal, after, through, received_before_ns)
        if not rows:
            return 0
        oldest_ns = min(row.received_ns for row in rows)
        if len(rows) < _ROWS and oldest_ns >= received_before_ns - _PATIENCE_NANOS:
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
        future_ns = self._wall_nanos() + _FUTURE_NANOS
        for chunk in journal.read(after, whole=False):
            for row in chunk:
                # The first row that must stay ends the segment: the journal never has holes. A row
                # from the future was stamped by a wrong clock: it is as old as the one before it.
                if row.sequence > through or received_before_ns <= row.received_ns < future_ns:
                    return rows
                rows.append(row)
                size += len(row.payload)
                if len(rows) >= _ROWS or size >= _BYTES:
                    return rows
        return rows

    def remove_older(self, written_before_seconds: float) -> int:
        """Delete segments written before a time (seconds since the epoch); how many went.

        None go before that time has gone on steadily for an hour, and none that is newer than one
        that stays: a clock that was wrong for a moment must not cost years of proof.
        """
        if not self._removal_time.holds(int(written_before_seconds * NANOS)):
            return 0
        future_seconds = (self._wall_nanos() + _FUTURE_NANOS) / NANOS
        old: list[Path] = []
        seen: list[Path] = []
        for _, _, path in self._files():
            written_seconds = path.stat().st_mtime
            if written_before_seconds <= written_seconds < future_seconds:
                break
            seen.append(path)
            if written_seconds < written_before_seconds:
                # With it those before it that seem to come from the future.
                old = list(seen)
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
