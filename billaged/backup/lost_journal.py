"""What is left of a journal that a start refuses, beside the ledger that was folded from it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from billaged.intake.chain import Follower
from billaged.intake.journal import BegunAnew, Head
from billaged.intake.journal_file import JournalFile
from billaged.intake.sqlite_schema import About, JournalDamaged
from billaged.model.errors import StorageError

_MOVE_IT: Final = (
    "Where no such ledger is to be had, and these rows may never be billed, move the journal away yourself"
    " (journal.db, journal.db-wal and journal.db-shm together), keep it, and do this again."
)
_ANOTHER_LEDGER: Final = (
    f"Put back the ledger that goes with it, or fold it anew with 'billaged journal replay --into NEW'. {_MOVE_IT}"
)


class Lost(NamedTuple):
    """Nothing in it is known to be missing in the ledger."""

    # What is wrong with it.
    why: str
    # Rows up to here had left it, 0 where it does not say.
    pruned: int = 0
    # The last row that it had given, 0 where it does not say.
    given: int = 0
    # Where its chain begins; None where it does not say.
    chained_after: int | None = None
    # Rows that are there and were folded, as far as anybody can tell; None where it cannot be read.
    rows_there: int | None = None
    story: Sequence[BegunAnew] = ()


def look_at_journal(path: Path, journal_id: str, folded: Head) -> Lost:
    """``journal_id`` and ``folded`` are what the ledger says of its journal.

    Raises:
        StorageError: it can go on as it is, it has what the ledger has not, or it cannot be opened.
    """
    if not path.exists():
        return Lost("it is not there", rows_there=0)
    if path.stat().st_size == 0:
        # SQLite would throw away the WAL beside it.
        return Lost("it is empty")
    try:
        with closing(JournalFile(path)) as journal:
            about = journal.about()
            if journal.journal_id != journal_id:
                return _of_another(journal, about)
            said = Lost(
                "",
                pruned=about.left.sequence,
                given=about.head.sequence,
                chained_after=about.beginning.after,
                story=journal.begun_anew(),
            )
            try:
                _refuse_what_goes_on(journal, about, folded)
                there = _count(journal, 0, folded.sequence)
                return said._replace(why=_what_is_wrong(about, folded), rows_there=there)
            except JournalDamaged as error:
                return said._replace(why=_problem_of(error))
    except JournalDamaged as error:
        return Lost(_problem_of(error))


def _of_another(journal: JournalFile, about: About) -> Lost:
    if about.head.sequence:
        raise StorageError(
            f"{journal.path} is another journal, {journal.journal_id}, with rows up to {about.head.sequence}: they are"
            " not in this ledger.",
            f"Put back the ledger that belongs to it. {_MOVE_IT}",
        )
    return Lost("it is another one, without a row", rows_there=0)


def _refuse_what_goes_on(journal: JournalFile, about: About, folded: Head) -> None:
    """
    Raises:
        StorageError: a start can go on with it, or rows of it would be lost.
    """
    position = folded.sequence
    newer = _newer(journal, about, position)
    is_folded = _chain_at(journal, about, position) == folded.chain
    is_whole = about.left.sequence <= position and newer == about.head.sequence - position and about.lost is None
    if is_whole and is_folded:
        raise StorageError(
            f"the journal {journal.path} goes on from row {position}, up to which the ledger has folded:"
            f" nothing is lost, and a start folds the {newer:,} rows after it.",
            "Start the daemon.",
        )
    if about.left.sequence > position:
        raise StorageError(
            f"rows {position + 1} to {about.head.sequence} of the journal {journal.path} are not in this ledger: it is"
            " older than what the journal still holds.",
            _ANOTHER_LEDGER,
        )
    if newer:
        raise StorageError(
            f"the journal {journal.path} has {newer:,} rows after {position}, up to {about.newest}, that the"
            " ledger has not folded: they would be lost.",
            _ANOTHER_LEDGER,
        )
    if not is_folded and about.newest == position and _is_unbroken(journal, about):
        # Not damaged: it took usage of its own, under the same numbers.
        raise StorageError(
            f"the journal {journal.path} is whole up to row {position}, but that row is not the one that the ledger has"
            " folded: rows of it would be lost, and nobody can tell how many.",
            _ANOTHER_LEDGER,
        )


def _newer(journal: JournalFile, about: About, position: int) -> int:
    """How many rows are there that the ledger has not folded.

    Raises:
        StorageError: there are some, and not all of them can be read.
    """
    if about.head.sequence <= position:
        return 0
    try:
        return _count(journal, position, about.head.sequence)
    except JournalDamaged as error:
        raise StorageError(
            f"{_problem_of(error)}: rows after {position}, up to which the ledger has folded, would be lost.",
            f"Restore a backup of journal and ledger. {_MOVE_IT}",
        ) from error


def _what_is_wrong(about: About, folded: Head) -> str:
    end = max(about.newest or 0, about.left.sequence)
    if end < folded.sequence:
        return f"its rows end at {end}"
    if about.lost is not None:
        return f"its rows {about.lost[0]} to {about.lost[1]} are missing"
    return f"its row {folded.sequence} is not the one that the ledger has folded"


def _chain_at(journal: JournalFile, about: About, sequence: int) -> bytes:
    """As ``Journal.chain_at``, for what may be missing or of any type."""
    if sequence <= about.beginning.after:
        return b""
    if sequence == about.left.sequence:
        return about.left.chain
    try:
        rows = next(journal.rows(sequence - 1, sequence), None)
    except JournalDamaged:
        # Then nobody can say that it is the one that was folded.
        return b""
    return rows[0].chain if rows and isinstance(rows[0].chain, bytes) else b""


def _is_unbroken(journal: JournalFile, about: About) -> bool:
    follower = Follower(about.beginning, about.left if about.left.chain else None)
    expected = about.left.sequence + 1
    for rows in journal.rows(about.left.sequence, about.head.sequence):
        for row in rows:
            if row.sequence != expected or not follower.goes_on(row):
                return False
            expected += 1
    return expected > about.head.sequence


def _problem_of(error: JournalDamaged) -> str:
    """What is wrong, without what a start would have done about it."""
    return error.problem.removesuffix(".")


def _count(journal: JournalFile, after: int, through: int) -> int:
    return sum(len(rows) for rows in journal.rows(after, max(through, after)))
