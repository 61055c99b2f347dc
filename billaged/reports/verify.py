"""Whether a journal is whole: its file, its sequence, each payload, its chain, and that the ledger belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from billaged.intake.journal import Head
from billaged.intake.journal_file import JournalFile
from billaged.intake.segment_file import segments_in
from billaged.intake.segments import FOLDER_NAME as SEGMENTS
from billaged.intake.sqlite import FILE_NAME
from billaged.intake.sqlite_schema import About
from billaged.ledger import database
from billaged.ledger.reader import reading
from billaged.ledger.views import LedgerPosition
from billaged.model.errors import StorageError
from billaged.reports.findings import Verification
from billaged.reports.known_heads import KnownHeads
from billaged.reports.row_checks import JournalRows, SegmentRows

# Told how many rows of how many are done.
Progress = Callable[[int, int], None]


def verify(data_dir: Path, progress: Progress, given: Sequence[Head] = ()) -> Verification:
    """Read the whole journal and the segments of a data directory. Changes nothing; a daemon may run.

    ``given`` heads were kept elsewhere: the rows that they stand for must have them still.

    Raises:
        StorageError: the journal is missing or cannot be read.
    """
    with closing(JournalFile(data_dir / FILE_NAME)) as journal:
        # A running daemon first appends, then folds, then prunes: asked for in this order, each bounds the next.
        about = journal.about()
        left = about.left.sequence
        try:
            ledger, unreadable = _covered(data_dir / database.FILE_NAME), ""
        except StorageError as error:
            # Whether the journal is whole is what somebody whose ledger is lost has to know.
            ledger, unreadable = None, f"nothing says up to where it was folded: {error}"
        sequence = None if ledger is None else ledger.position.sequence
        found = Verification(journal.path, journal.journal_id, about.beginning, left, journal.end(), sequence)
        found.begun_anew = journal.begun_anew()
        found.problems += [f"SQLite finds the file damaged: {problem}" for problem in journal.integrity_problems()]
        folded = None
        if ledger is not None and ledger.chain and ledger.position.journal_id == found.journal_id:
            folded = Head(ledger.position.sequence, ledger.chain)
        heads = _heads(found, about, folded, given)
        rows = found.end - left
        in_segments = sum(segment.last + 1 - segment.first for segment in segments_in(data_dir / SEGMENTS))
        JournalRows(journal, found, heads).check(about, lambda done: progress(done, rows + in_segments))
        # After the journal: what has left it meanwhile is in them.
        segments = segments_in(data_dir / SEGMENTS)
        SegmentRows(segments, found, heads).check(lambda done: progress(rows + done, rows + in_segments))
        heads.note_unmet()
        if ledger is None:
            found.problems.append(unreadable)
        else:
            _check_ledger(found, ledger.position, ledger.chain)
        return found


class _Covered(NamedTuple):
    """What a ledger says that it was folded from."""

    position: LedgerPosition
    chain: bytes


def _covered(path: Path) -> _Covered:
    with reading(path) as ledger:
        return _Covered(ledger.position, ledger.chain)


def _heads(found: Verification, about: About, folded: Head | None, given: Sequence[Head]) -> KnownHeads:
    heads = KnownHeads(found)
    if folded is not None:
        heads.add_ledgers(folded)
    for head in given:
        heads.add_given(head)
    if about.left.sequence > about.beginning.after:
        heads.add_link(about.left, "the journal goes on from")
    if about.left.sequence >= about.beginning.after:
        heads.compare(*about.left)
    heads.compare(*about.beginning)
    return heads


def _check_ledger(found: Verification, position: LedgerPosition, chain: bytes) -> None:
    if position.journal_id != found.journal_id:
        found.problems.append(
            f"the ledger was folded from journal {position.journal_id}, but this one is {found.journal_id}"
        )
    elif not found.pruned <= position.sequence <= found.end:
        found.problems.append(
            f"the ledger has folded up to journal row {position.sequence},"
            f" but the journal holds {found.pruned + 1} to {found.end}"
        )
    elif position.sequence > found.beginning.after and not chain:
        found.problems.append(f"the ledger does not say which row {position.sequence} it has folded: it was changed")
