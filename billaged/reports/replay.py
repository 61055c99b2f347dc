"""The ledger computed anew from its journal, from the first row or from a cut, and compared with the real one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

from billaged.aggregator.persistence import of_another_version
from billaged.intake.journal_file import JournalFile
from billaged.intake.segments import FOLDER_NAME as SEGMENTS
from billaged.intake.segments import Segments
from billaged.intake.sqlite import FILE_NAME
from billaged.ledger import database
from billaged.ledger.backup import look_at
from billaged.ledger.checked import readable
from billaged.ledger.cuts import FOLDER_NAME as SNAPSHOTS
from billaged.ledger.cuts import Cut, cuts_in, unpack_cut
from billaged.ledger.full_disk import is_full
from billaged.ledger.reader import LedgerReader, reading
from billaged.ledger.store import LedgerStore
from billaged.model.errors import DurabilityLost, StorageError
from billaged.reports.comparison import TableComparison, compare
from billaged.reports.cuts import is_of
from billaged.reports.errors import NoRoom, ProofFailed
from billaged.reports.refold import Refold
from billaged.reports.verify import Progress

_CUT_COPY: Final = "cut.db"


class Comparison(NamedTuple):
    """The journal's rows after ``begun_after`` up to ``position`` against the ledger that says it covers them."""

    position: int
    # 0 for all rows, else the cut's position.
    begun_after: int
    tables: list[TableComparison]
    # What the rows' chain says.
    problems: list[str]
    # Why there are no tables.
    not_compared: str | None = None

    @property
    def differing(self) -> int:
        return sum(table.differing for table in self.tables)

    @property
    def equal(self) -> bool:
        return not (self.differing or self.problems)


def replay(data_dir: Path, into: Path | None, progress: Progress, begin_after: int | None = None) -> Comparison:
    """Fold the journal into a fresh ledger and compare. Changes neither; a daemon may run.

    ``begin_after`` is a cut's position, 0 for the first row; None takes the first row where all rows are there,
    else the oldest cut that has all rows after it. ``into`` keeps the fresh ledger there (it must not exist yet),
    begins at the first row, and needs no ledger to compare with; None keeps it nowhere.

    Raises:
        ProofFailed: the journal lacks rows, is another one than the ledger's, or there is no such cut.
        NoRoom: the disk that the fresh one is on is full.
        StorageError: journal, segments, snapshot or ledger cannot be read, or the fresh one cannot be made.
    """
    with closing(JournalFile(data_dir / FILE_NAME)) as journal, _place(into) as path:
        segments = Segments(data_dir / SEGMENTS)
        target, unreadable = _target(data_dir, journal, needed=into is None)
        cut = None if into is not None else _cut(data_dir, journal, segments, target, begin_after)
        if cut is not None:
            _begin_at(cut, path, journal)
        store = LedgerStore(database.open_for_writing(path, backup=False), journal.journal_id)
        with closing(store):
            refold = Refold(journal, segments, store, progress)
            # The long way first, without holding the ledger's moment; what came meanwhile after.
            refold.go_to(target)
            begun_after = 0 if cut is None else cut.position
            if unreadable is not None:
                return Comparison(target, begun_after, [], _problems(refold, begun_after), unreadable)
            with reading(data_dir / database.FILE_NAME) as ledger:
                _check_same(journal, ledger)
                refold.go_to(ledger.position.sequence)
                compared = Comparison(refold.head.sequence, begun_after, [], _problems(refold, begun_after, ledger))
                try:
                    with readable():
                        return compared._replace(tables=_compare(ledger, path, with_cut=cut is not None))
                except StorageError as error:
                    if into is None:
                        raise
                    # The fresh one may be needed just because the other one is damaged.
                    return compared._replace(not_compared=str(error))


def _target(data_dir: Path, journal: JournalFile, *, needed: bool) -> tuple[int, str | None]:
    """Up to where to fold: the ledger's position; the journal's end, and why, where no ledger can be compared."""
    try:
        with reading(data_dir / database.FILE_NAME) as ledger:
            _check_same(journal, ledger)
            position = ledger.position.sequence
            if not ledger.is_of_this_version:
                raise of_another_version()
        pruned = journal.pruned()
        if position < pruned and not needed:
            # It cannot go on: one that a start has made anew.
            return journal.end(), f"the ledger has folded up to {position} only, the journal begins after {pruned}."
        return position, None
    except StorageError as error:
        if needed:
            raise
        return journal.end(), str(error)


def _cut(
    data_dir: Path, journal: JournalFile, segments: Segments, ledger_position: int, begin_after: int | None
) -> Cut | None:
    """The cut to begin at; None for the first row."""
    cuts = cuts_in(data_dir / SNAPSHOTS)
    if begin_after is None:
        reach = segments.reach(journal.pruned())
        usable = [cut for cut in cuts if reach <= cut.position <= ledger_position] if reach else []
        # Where none is this journal's, the rows' chain will say so.
        return next((cut for cut in usable if is_of(journal, segments, cut)), next(iter(usable), None))
    if begin_after == 0:
        return None
    for cut in cuts:
        if cut.position == begin_after:
            if begin_after > ledger_position:
                raise ProofFailed(f"the ledger has folded up to row {ledger_position} only: the cut is newer.")
            return cut
    raise ProofFailed(f"there is no cut at {begin_after}: 'billaged journal cuts' lists those that there are.")


def _begin_at(cut: Cut, path: Path, journal: JournalFile) -> None:
    """Make the snapshot the fresh ledger, and a copy of it to look things up in."""
    unpack_cut(cut, path)
    found = look_at(path)
    if (found.journal_id, found.position) != (journal.journal_id, cut.position):
        raise ProofFailed(
            f"the snapshot {cut.path} is of row {found.position} of journal {found.journal_id}:"
            f" not of row {cut.position} of {journal.journal_id}."
        )
    database.open_for_writing(path, backup=False).dispose()
    shutil.copyfile(path, path.with_name(_CUT_COPY))


def _compare(ledger: LedgerReader, path: Path, *, with_cut: bool) -> list[TableComparison]:
    with reading(path) as fresh:
        if not with_cut:
            return compare(ledger, fresh)
        with reading(path.with_name(_CUT_COPY)) as cut:
            return compare(ledger, fresh, cut)


def _problems(refold: Refold, begun_after: int, ledger: LedgerReader | None = None) -> list[str]:
    problems = [
        f"journal row {sequence} was changed: it does not go on from the row before it"
        + (" as the snapshot of the cut has it; or the snapshot was changed" if sequence == begun_after + 1 > 1 else "")
        for sequence in refold.first_changed
    ]
    if refold.changed_rows > len(problems):
        problems.append(f"and {refold.changed_rows - len(problems):,} more changed rows")
    head = refold.head
    if ledger is not None and ledger.chain and ledger.chain != head.chain:
        problems.append(f"journal row {head.sequence} is not the one that the ledger has folded")
    return problems


def _check_same(journal: JournalFile, ledger: LedgerReader) -> None:
    if ledger.position.journal_id != journal.journal_id:
        raise ProofFailed(
            f"the ledger was folded from journal {ledger.position.journal_id}, but the one beside it is"
            f" {journal.journal_id}."
        )


@contextmanager
def _place(into: Path | None) -> Iterator[Path]:
    if into is None:
        with TemporaryDirectory(prefix="billaged-replay-") as folder, _full_disk_named(Path(folder).parent):
            yield Path(folder) / database.FILE_NAME
        return
    try:
        # Nobody else's to read, and never over something that is there.
        os.close(os.open(into, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StorageError(f"--into {into} cannot be made: {error.strerror}.", "Name a new file.") from error
    try:
        with _full_disk_named(into.parent):
            yield into
    except BaseException:
        # Half a ledger looks like a whole one.
        for ending in ("", "-wal", "-shm"):
            into.with_name(into.name + ending).unlink(missing_ok=True)
        raise


@contextmanager
def _full_disk_named(folder: Path) -> Iterator[None]:
    """Nothing but the fresh ledger is written: where the disk is full, no other file is to blame.

    Raises:
        NoRoom: it is.
    """
    try:
        yield
    except (StorageError, DurabilityLost, OSError) as error:
        if not is_full(error):
            raise
        raise NoRoom(f"no room to fold the journal anew in {folder}. Free space there, or set TMPDIR.") from error
