"""A journal that is lost, beside a ledger that is whole: a new file in which the journal goes on behind the ledger.

Each step leaves what a start refuses, or what the next run of this finishes: the new file is made under another name,
what is left of the old one is set aside, and only then the new one gets its name.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from billaged.aggregator.persistence import of_another_version
from billaged.backup.lost_journal import Lost, look_at_journal
from billaged.backup.moving import give_to_owner_of
from billaged.backup.restore import LOGS, unused
from billaged.directory import DataDirectory
from billaged.intake.begun_anew import write_anew
from billaged.intake.journal import BegunAnew, Head
from billaged.intake.journal_file import JournalFile
from billaged.intake.segment_file import segments_in
from billaged.intake.segments import FOLDER_NAME as SEGMENTS
from billaged.intake.sqlite import FILE_NAME as JOURNAL
from billaged.ledger import database
from billaged.ledger.backup import FOLDER_NAME as BACKUPS
from billaged.ledger.backup import damage_of, stamp
from billaged.ledger.copying import new_file, sync_folder
from billaged.ledger.cuts import FOLDER_NAME as SNAPSHOTS
from billaged.ledger.cuts import cuts_in, make_cut
from billaged.ledger.database import FILE_NAME as LEDGER
from billaged.ledger.reader import reading
from billaged.model.errors import StorageError
from billaged.storage import check_restored

# The new file until the old one is out of its way.
_STAGED: Final = f"{JOURNAL}.anew"


class Begun(NamedTuple):
    journal_id: str
    # The row that the journal goes on behind, and what stands for every row up to it.
    head: Head
    story: BegunAnew


class Plan(NamedTuple):
    """What is to be done, for whoever has to agree."""

    why: str
    begun: Begun
    # Rows of the old file that are there: the ledger is taken to have folded them. None where it cannot be read.
    rows_there: int | None
    # Whether the old file says which row was its last: else there may have been more than the ledger has folded.
    end_known: bool


Agreed = Callable[[Plan], bool]


def begin_anew(data_dir: Path, agreed: Agreed) -> Begun | None:
    """Go on behind the ledger in a new journal; None where ``agreed`` says no, and nothing has changed then.

    Raises:
        StorageError: a daemon runs, the ledger is not whole, the journal can go on as it is, or has what the ledger
            has not: nothing is changed then. Or a file cannot be written.
    """
    ledger = data_dir / LEDGER
    if not ledger.exists():
        raise StorageError(
            f"there is no ledger at {ledger}: a journal goes on behind one.",
            "Point --data-dir or UNKEY_BILLAGED_DATA_DIR at the daemon's data directory.",
        )
    directory = DataDirectory(data_dir)
    try:
        give_to_owner_of(data_dir, *data_dir.glob("lock"))
        check_restored(data_dir)
        folded = _folded(ledger)
        begun = _broken_off(data_dir, folded)
        if begun is None:
            plan, found = _planned(data_dir, folded)
            if not agreed(plan):
                return None
            begun = plan.begun
            _prepare(data_dir, begun, found)
        _put_in_place(data_dir, begun.story)
        return begun
    except OSError as error:
        raise StorageError(f"{error.filename or data_dir} cannot be used: {error.strerror}.") from error
    finally:
        directory.release()


class Folded(NamedTuple):
    journal_id: str
    head: Head


def _folded(ledger: Path) -> Folded:
    # As a start does it: brought up to date, with a copy of what it was.
    try:
        database.open_for_writing(ledger).dispose()
    finally:
        give_to_owner_of(ledger.parent, *ledger.parent.glob(BACKUPS))
    if (damage := damage_of(ledger)) is not None:
        raise StorageError(f"the ledger {ledger} is damaged: {damage}.", "Restore a backup of journal and ledger.")
    with reading(ledger) as reader:
        if not reader.position.journal_id:
            raise StorageError(
                f"nothing was folded into the ledger {ledger} yet.", f"Move {LEDGER} away: a start begins with both."
            )
        if not reader.is_of_this_version:
            raise of_another_version()
        return Folded(reader.position.journal_id, Head(reader.position.sequence, reader.chain))


def _broken_off(data_dir: Path, folded: Folded) -> Begun | None:
    """What an earlier run was killed in: the new file is there, the old one is not in its place any more."""
    staged = data_dir / _STAGED
    if (data_dir / JOURNAL).exists() or not staged.exists():
        return None
    with closing(JournalFile(staged)) as journal:
        about, story = journal.about(), journal.begun_anew()
        if (journal.journal_id, about.head.sequence) != (folded.journal_id, folded.head.sequence):
            return None
        if folded.head.chain and about.head.chain != folded.head.chain:
            return None
        return Begun(journal.journal_id, folded.head, story[-1])


def _planned(data_dir: Path, folded: Folded) -> tuple[Plan, Lost]:
    found = look_at_journal(data_dir / JOURNAL, folded.journal_id, folded.head)
    position = folded.head.sequence
    in_segments = [segment.last for segment in segments_in(data_dir / SEGMENTS)]
    _refuse_to_leave_out(data_dir / SEGMENTS, max(in_segments, default=0), position)
    kept = min(position, max([found.pruned, *in_segments]))
    there = any((data_dir / (JOURNAL + log)).exists() for log in LOGS)
    set_aside = unused(data_dir / f"replaced-{stamp()}").name if there else ""
    story = BegunAnew(position, kept + 1, max(found.given, position), time.time_ns(), set_aside)
    begun = Begun(folded.journal_id, folded.head, story)
    return Plan(found.why, begun, found.rows_there, found.given >= position), found


def _refuse_to_leave_out(segments: Path, last: int, position: int) -> None:
    """Rows leave the journal once a ledger has them: this one is older than that."""
    if last > position:
        raise StorageError(
            f"rows {position + 1} to {last} are in {segments} and not in this ledger, which is older than they are:"
            " they would never be billed, and their numbers would be given again.",
            f"Put back the ledger that goes with them. Where none is to be had, move the files with rows after"
            f" {position} out of {segments.name}, keep them, and do this again.",
        )


def _prepare(data_dir: Path, begun: Begun, found: Lost) -> None:
    """The snapshot that replays begin at from now on, and the new file: neither is in anybody's way."""
    position, snapshots = begun.head.sequence, data_dir / SNAPSHOTS
    cuts = [cut for cut in cuts_in(snapshots) if cut.position == position]
    if position and not cuts:
        make_cut(data_dir / LEDGER, snapshots, begun.story.begun_ns, lambda: None)
        give_to_owner_of(data_dir, snapshots)
    elif cuts and cuts[0].label().chain != begun.head.chain:
        raise StorageError(f"the snapshot {cuts[0].path} is of another journal's row {position}.", "Move it away.")
    staged = data_dir / _STAGED
    staged.unlink(missing_ok=True)
    for folder in data_dir.glob("replaced-*"):
        # Of a run that was killed before it moved anything there.
        if folder.is_dir() and not any(folder.iterdir()) and folder.name != begun.story.set_aside:
            folder.rmdir()
    chained_after = _chained_after(data_dir, begun.head, found)
    with new_file(staged) as (_, unfinished), closing(sqlite3.connect(unfinished, isolation_level=None)) as connection:
        # It is synced and named once it is whole, or thrown away.
        connection.execute("PRAGMA journal_mode=OFF")
        write_anew(connection, begun.journal_id, chained_after, begun.head, [*found.story, begun.story])
    give_to_owner_of(data_dir, staged)


def _chained_after(data_dir: Path, head: Head, found: Lost) -> int:
    """Where the chain begins: segments of before it must be told from changed ones."""
    if not head.chain:
        return head.sequence
    if found.chained_after is not None:
        return found.chained_after
    unchained = 0
    for segment in segments_in(data_dir / SEGMENTS):
        for rows in segment.rows():
            for row in rows:
                if row.chain:
                    return unchained
                unchained = row.sequence
    return unchained


def _put_in_place(data_dir: Path, story: BegunAnew) -> None:
    # The database before its logs: without it, a start says that it is missing.
    there = [path for log in LOGS if (path := data_dir / (JOURNAL + log)).exists()]
    if there:
        set_aside = data_dir / story.set_aside
        set_aside.mkdir(mode=0o700, exist_ok=True)
        give_to_owner_of(data_dir, set_aside)
        for path in there:
            path.rename(set_aside / path.name)
        # Gone for good before the new one comes: SQLite would take a log beside it for its own.
        sync_folder(set_aside)
        sync_folder(data_dir)
    (data_dir / _STAGED).rename(data_dir / JOURNAL)
    sync_folder(data_dir)
