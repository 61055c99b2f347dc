"""The cuts that a replay may begin at."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from billaged.intake.journal_file import JournalFile
from billaged.intake.segments import FOLDER_NAME as SEGMENTS
from billaged.intake.segments import Segments
from billaged.intake.sqlite import FILE_NAME
from billaged.ledger.cuts import FOLDER_NAME as SNAPSHOTS
from billaged.ledger.cuts import Cut, cuts_in


class CutView(NamedTuple):
    """``chain`` is the journal's at ``position``; the first row of all is no snapshot, and was never made."""

    position: int
    made_ns: int | None
    chain: bytes
    bytes: int
    # Whether all rows after it are there, and whether its row is the journal's.
    whole: bool
    is_own: bool


def cuts_of(data_dir: Path) -> list[CutView]:
    """All of a data directory, in order, and the journal's beginning before them.

    Raises:
        StorageError: there is no journal, or a snapshot is damaged.
    """
    segments = Segments(data_dir / SEGMENTS)
    with closing(JournalFile(data_dir / FILE_NAME)) as journal:
        reach = segments.reach(journal.pruned())
        views = [CutView(0, None, b"", 0, reach == 0, is_own=True)]
        for cut in cuts_in(data_dir / SNAPSHOTS):
            (made_ns, chain), size = cut.label(), cut.path.stat().st_size
            is_own = is_of(journal, segments, cut)
            views.append(CutView(cut.position, made_ns, chain, size, cut.position >= reach, is_own))
        return views


def is_of(journal: JournalFile, segments: Segments, cut: Cut) -> bool:
    """Whether a snapshot is of this journal's row, as far as that can be told; another one's may be left of a restore.

    Raises:
        StorageError: the journal, the segment after it or the snapshot cannot be read.
    """
    about = journal.about()
    if cut.position > about.head.sequence:
        return False
    chain: bytes | None = None
    if cut.position == about.left.sequence:
        chain = about.left.chain
    elif cut.position < about.left.sequence:
        chain = segments.chain_before(cut.position + 1)
    elif rows := next(journal.rows(cut.position - 1, cut.position), None):
        chain = rows[0].chain
    return not chain or cut.label().chain in (chain, b"")
