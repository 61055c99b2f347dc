"""Segments: what left the journal, compressed, one JSON line a row. Readable without billaged.

A segment is written whole, synced, and only then do its rows leave the journal; a
crash in between leaves a segment that the next run writes again, the same.

Times here come from the wall clock, which may be wrong: nothing is deleted for good before
an hour of readings has shown no step, and what was stamped with a time to come blocks nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from billaged.intake.chain import Follower
from billaged.intake.clock import Steadiness, awake_and_asleep_nanos
from billaged.intake.journal import Journal, JournalRow
from billaged.intake.segment_file import SegmentFile, segments_in, write_segment
from billaged.model.errors import StorageError
from billaged.model.time import HOUR_NANOS, MINUTE_NANOS, NANOS

_log: Final = logging.getLogger("billaged.intake")

FOLDER_NAME: Final = "segments"

_ROWS: Final = 50_000
_BYTES: Final = 64 * 2**20
# A segment that is not full waits this long for more rows: a quiet daemon writes few files.
_PATIENCE_NANOS: Final = HOUR_NANOS
# Stamped later than this after now: the clock was wrong then.
_FUTURE_NANOS: Final = 5 * MINUTE_NANOS
_RESTORE: Final = "Restore it from a backup."


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

        Returns the last sequence in it: all rows up to there have a segment. 0 where
        too few qualify yet to be worth a file (those that end at ``through`` always are). ``keep=False`` writes
        none: the rows are gone for good then, so none qualify before the time has gone on steadily for an hour.
        """
        if not self._archive_time.holds(received_before_ns) and not keep:
            return 0
        rows = self._oldest(journal, after, through, received_before_ns)
        if not rows:
            return 0
        oldest_ns = min(row.received_ns for row in rows)
        is_full = len(rows) >= _ROWS or rows[-1].sequence == through
        if not is_full and oldest_ns >= received_before_ns - _PATIENCE_NANOS:
            return 0
        if keep:
            write_segment(self._folder, rows, _chain_before(rows[0], journal))
        return rows[-1].sequence

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
        for _, _, path in segments_in(self._folder):
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

    def reach(self, pruned: int) -> int:
        """All rows after this sequence are there: in segments up to ``pruned``, where the journal begins."""
        reached = pruned
        for segment in reversed(segments_in(self._folder)):
            if segment.last >= reached:
                reached = min(reached, segment.first - 1)
        return reached

    def first(self) -> int | None:
        """The first sequence that any segment has; None where there is none."""
        return min((segment.first for segment in segments_in(self._folder)), default=None)

    def chain_before(self, sequence: int) -> bytes | None:
        """What a row goes on from, as a segment says that begins with it; None where none does.

        Raises:
            StorageError: the segment's first line is none.
        """
        for segment in segments_in(self._folder):
            if segment.first == sequence and (known := segment.known()) is not None:
                return known.chain
        return None

    def read(self, after: int, through: int) -> Iterator[list[JournalRow]]:
        """The rows of (after, through] in order, in chunks.

        Raises:
            StorageError: a segment is missing or damaged, or a row was changed; the message names it.
        """
        reached = after
        trail = None
        for segment in segments_in(self._folder):
            if segment.last <= reached:
                continue
            if segment.first > reached + 1 or reached >= through:
                break
            trail = trail or _Trail(segment)
            for rows in trail.follow(segment):
                wanted = [row for row in rows if reached < row.sequence <= through]
                if wanted:
                    yield wanted
                    reached = wanted[-1].sequence
        if reached < through:
            raise StorageError(
                f"no segment in {self._folder} holds journal row {reached + 1}.",
                "Restore the segment files; rows that left the journal are nowhere else.",
            )


class _Trail:
    """Rows that go on from each other, through segments that may overlap."""

    def __init__(self, first: SegmentFile) -> None:
        self._follower = Follower(known=first.known())
        self._seen = first.first - 1

    def follow(self, segment: SegmentFile) -> Iterator[list[JournalRow]]:
        for rows in segment.rows():
            new = [row for row in rows if row.sequence > self._seen]
            for row in new:
                if row.sequence != self._seen + 1:
                    raise StorageError(f"the segment {segment.path} lacks row {self._seen + 1}.", _RESTORE)
                if not self._follower.goes_on(row):
                    raise StorageError(
                        f"row {row.sequence} in the segment {segment.path} was changed:"
                        " it does not go on from the row before it.",
                        _RESTORE,
                    )
                self._seen = row.sequence
            yield new


def _chain_before(row: JournalRow, journal: Journal) -> bytes:
    try:
        return journal.chain_at(row.sequence - 1)
    except StorageError:
        # It is lost, or has no chain: the segment can be read without it, and 'journal verify' names what is lost.
        _log.exception("journal row %d goes into a segment without what it goes on from", row.sequence)
        return b""
