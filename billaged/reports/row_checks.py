"""Each row of a journal and of its segments, looked at in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from billaged.intake.chain import Follower
from billaged.intake.journal import Head, JournalRow, entry_of, has_types
from billaged.intake.journal_file import JournalFile
from billaged.intake.segment_file import SegmentFile
from billaged.intake.sqlite_schema import About
from billaged.model.errors import StorageError
from billaged.model.records import Kind
from billaged.reports.findings import Verification, rows_named
from billaged.reports.known_heads import KnownHeads

# Told how many rows are done.
Done = Callable[[int], None]


class JournalRows:
    """The rows of the journal file."""

    def __init__(self, journal: JournalFile, found: Verification, heads: KnownHeads) -> None:
        self._journal = journal
        self._found = found
        self._heads = heads

    def check(self, about: About, done: Done) -> None:
        found, left = self._found, about.left
        if left.sequence and not left.chain and left.sequence > about.beginning.after:
            found.problems.append(f"the journal does not say what row {left.sequence + 1} goes on from: it was changed")
        follower = Follower(about.beginning, left if left.chain else None)
        expected = left.sequence + 1
        last = left
        # From the very first: what should have left and is still there is a sign of damage.
        for chunk in self._journal.rows(0, found.end):
            for row in chunk:
                found.rows += 1
                if row.sequence <= left.sequence:
                    problem = f"journal row {row.sequence} is still there, though rows up to {left.sequence} have left"
                    found.bad_row("left over", problem)
                    continue
                if row.sequence > expected:
                    self._note_missing(expected, row.sequence - 1)
                expected = row.sequence + 1
                if (kind := _check(row, follower, found, self._heads)) is not None:
                    self._count(row, kind)
                last = Head(row.sequence, row.chain)
            done(expected - 1 - left.sequence)
        if expected <= found.end:
            self._note_missing(expected, found.end)
        # Nothing is chained yet where the rows end before the chain's beginning.
        found.head = last if last.sequence > about.beginning.after else Head(*about.beginning)

    def _note_missing(self, first: int, last: int) -> None:
        # Rows may have left since, while a daemon runs; those were whole when it folded them.
        first = max(first, self._journal.pruned() + 1)
        if first <= last:
            self._found.bad_row("missing", f"{rows_named(first, last)} missing", last + 1 - first)

    def _count(self, row: JournalRow, kind: Kind) -> None:
        found = self._found
        found.by_kind[kind] += 1
        if found.first_received_ns is None:
            found.first_received_ns = row.received_ns
        found.last_received_ns = row.received_ns


class SegmentRows:
    """The rows of the segment files: each file by itself, and that they go on from each other and to the journal."""

    def __init__(self, segments: Sequence[SegmentFile], found: Verification, heads: KnownHeads) -> None:
        self._segments = segments
        self._found = found
        self._heads = heads
        self._done = 0

    def check(self, done: Done) -> None:
        # The first row that no segment so far had; None where anything may come.
        expected: int | None = None
        for segment in self._segments:
            if not segment.path.exists():
                # Older than the retention: removed meanwhile.
                expected = None
                continue
            if expected is not None and segment.first > expected:
                self._note_in_none(expected, segment.first - 1)
            self._check(segment, done)
            expected = max(expected or 0, segment.last + 1)
        if expected is not None and expected <= self._found.pruned:
            self._note_in_none(expected, self._found.pruned)

    def _check(self, segment: SegmentFile, done: Done) -> None:
        found, expected = self._found, segment.first
        found.segments += 1
        last: Head | None = None
        try:
            known = segment.known()
            if known is not None:
                self._heads.compare(known.sequence, known.chain, in_segment=True)
            follower = Follower(found.beginning, known)
            for rows in segment.rows():
                for row in rows:
                    if row.sequence < expected:
                        problem = f"the segment {segment.path} has row {row.sequence} after row {expected - 1}"
                        found.bad_row("changed", problem, in_segment=True)
                    elif row.sequence > expected:
                        self._note_missing(expected, row.sequence - 1, f"missing in the segment {segment.path}")
                    expected = max(expected, row.sequence + 1)
                    _check(row, follower, found, self._heads, segment)
                    last = Head(row.sequence, row.chain)
                found.segment_rows += len(rows)
                self._done += len(rows)
                done(self._done)
        except StorageError as error:
            rows_lost = max(1, segment.last + 1 - expected)
            found.bad_row("unreadable", str(error), rows_lost, in_segment=True)
        else:
            if expected <= segment.last:
                self._note_missing(expected, segment.last, f"missing: the segment {segment.path} is truncated")
        if last is not None and last.chain:
            self._heads.add_link(last, f"the segment {segment.path.name} ends with")

    def _note_in_none(self, first: int, last: int) -> None:
        """What was lost with a journal is known; what is missing beside it is named."""
        for story in self._found.begun_anew:
            if first <= story.after and story.first_lost <= last:
                self._note_missing(first, story.first_lost - 1, "in no segment")
                first = story.after + 1
        self._note_missing(first, last, "in no segment")

    def _note_missing(self, first: int, last: int, where: str) -> None:
        if first > last:
            return
        self._found.bad_row("missing", f"{rows_named(first, last)} {where}", last + 1 - first, in_segment=True)


def _check(
    row: JournalRow, follower: Follower, found: Verification, heads: KnownHeads, segment: SegmentFile | None = None
) -> Kind | None:
    """Note what is wrong with a row; its kind where it can be decoded."""
    in_segment = segment is not None
    where = "" if segment is None else f" in the segment {segment.path}"
    goes_on = follower.goes_on(row)
    kind = None
    if not has_types(row):
        problem = f"journal row {row.sequence}{where} is damaged: a column is not of its type"
        found.bad_row("unreadable", problem, in_segment=in_segment)
        return None
    try:
        kind = entry_of(row).kind
    except StorageError as error:
        found.bad_row("unreadable", str(error), in_segment=in_segment)
    else:
        if not goes_on:
            problem = f"journal row {row.sequence}{where} was changed: it does not go on from the row before it"
            found.bad_row("changed", problem, in_segment=in_segment)
    # What the chain begins with is no row's own.
    if row.chain or row.sequence != found.beginning.after:
        heads.compare(row.sequence, row.chain, in_segment=in_segment)
    return kind
