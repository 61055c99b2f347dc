"""Whether a journal is whole: its file, its sequence, each payload, and that the ledger belongs to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from billaged.intake.journal import JournalRow, entry_of, has_types
from billaged.intake.journal_file import JournalFile
from billaged.intake.sqlite import FILE_NAME
from billaged.ledger import database
from billaged.ledger.reader import reading
from billaged.model.errors import StorageError
from billaged.model.records import Kind

# Told how many rows of how many are done.
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Verification:
    """What was found. ``problems`` is empty where all is well; it names the first bad row, the rest are counted."""

    path: Path
    journal_id: str
    # Sequences up to here have left the journal.
    pruned: int
    # The last sequence at the beginning of the check, which went that far.
    end: int
    ledger_position: int
    rows: int = 0
    bad_rows: int = 0
    by_kind: Counter[Kind] = field(default_factory=Counter)
    # When the first and the last row were received, nanoseconds since the epoch; None without rows.
    first_received_ns: int | None = None
    last_received_ns: int | None = None
    problems: list[str] = field(default_factory=list)

    def bad_row(self, problem: str, count: int = 1) -> None:
        if not self.bad_rows:
            self.problems.append(problem)
        self.bad_rows += count


def verify(data_dir: Path, progress: Progress) -> Verification:
    """Read the whole journal of a data directory. Changes nothing; a daemon may run.

    Raises:
        StorageError: journal or ledger is missing or cannot be read.
    """
    with closing(JournalFile(data_dir / FILE_NAME)) as journal:
        # A running daemon first appends, then folds, then prunes: asked for in this order, each bounds the next.
        pruned = journal.pruned()
        with reading(data_dir / database.FILE_NAME) as ledger:
            position = ledger.position
        found = Verification(journal.path, journal.journal_id, pruned, journal.end(), position.sequence)
        found.problems += [f"SQLite finds the file damaged: {problem}" for problem in journal.integrity_problems()]
        for row in _rows(journal, found, progress):
            _check_payload(row, found)
        if position.journal_id != found.journal_id:
            found.problems.append(
                f"the ledger was folded from journal {position.journal_id}, but this one is {found.journal_id}"
            )
        elif not pruned <= position.sequence <= found.end:
            found.problems.append(
                f"the ledger has folded up to journal row {position.sequence},"
                f" but the journal holds {pruned + 1} to {found.end}"
            )
        return found


def _rows(journal: JournalFile, found: Verification, progress: Progress) -> Iterator[JournalRow]:
    """The rows, and a note of each that is missing."""
    expected = found.pruned + 1
    # From the very first: what should have left and is still there is a sign of damage.
    for chunk in journal.rows(0, found.end):
        for row in chunk:
            if row.sequence < expected:
                found.bad_row(f"journal row {row.sequence} is still there, though rows up to {found.pruned} have left")
            elif row.sequence > expected:
                # Rows may have left since, while a daemon runs; those were whole when it folded them.
                gone = max(expected, journal.pruned() + 1)
                if row.sequence > gone:
                    found.bad_row(_missing(gone, row.sequence - 1), row.sequence - gone)
            expected = max(expected, row.sequence + 1)
            yield row
        progress(max(0, expected - 1 - found.pruned), found.end - found.pruned)
    expected = max(expected, journal.pruned() + 1)
    if expected <= found.end:
        found.bad_row(_missing(expected, found.end), found.end + 1 - expected)


def _missing(first: int, last: int) -> str:
    return f"journal row {first} is missing" if first == last else f"journal rows {first} to {last} are missing"


def _check_payload(row: JournalRow, found: Verification) -> None:
    found.rows += 1
    if not has_types(row):
        found.bad_row(f"journal row {row.sequence} is damaged: a column is not of its type")
        return
    try:
        entry = entry_of(row)
    except StorageError as error:
        found.bad_row(str(error))
        return
    found.by_kind[entry.kind] += 1
    if found.first_received_ns is None:
        found.first_received_ns = row.received_ns
    found.last_received_ns = row.received_ns
