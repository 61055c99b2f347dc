"""Journal and ledger, opened together: that they belong together is checked before anything is folded."""

from __future__ import annotations

from typing import NamedTuple

from billaged.directory import DataDirectory
from billaged.intake import sqlite as journal_file
from billaged.intake.journal import Journal
from billaged.intake.memory import MemoryJournal
from billaged.intake.sqlite import SqliteJournal
from billaged.ledger import database
from billaged.ledger.store import LedgerStore
from billaged.model.errors import StorageError


class Stores(NamedTuple):
    journal: Journal
    ledger: LedgerStore

    def close(self) -> None:
        self.ledger.close()
        self.journal.close()


def open_stores(directory: DataDirectory | None) -> Stores:
    """The journal and the ledger of a data directory; both in memory without one.

    Raises:
        StorageError: one cannot be used, or they do not belong together.
    """
    if directory is None:
        memory = MemoryJournal()
        return Stores(memory, LedgerStore(database.open_for_writing(None), memory.journal_id))
    journal = SqliteJournal(directory.path / journal_file.FILE_NAME)
    try:
        engine = database.open_for_writing(directory.path / database.FILE_NAME)
        ledger = LedgerStore(engine, journal.journal_id)
        _check_together(journal, ledger.checkpoint().position)
    except StorageError:
        journal.close()
        raise
    return Stores(journal, ledger)


def _check_together(journal: Journal, position: int) -> None:
    if journal.position < position:
        raise StorageError(
            f"the journal ends at {journal.position}, but the ledger has folded up to {position}:"
            " the journal is older than the ledger.",
            "Put back the newer journal.db, or a ledger.db of the same age.",
        )
    if position < journal.pruned:
        raise StorageError(
            f"the ledger has folded up to {position}, but the journal begins after {journal.pruned}:"
            " the ledger is older than what the journal still holds.",
            "Put back a newer ledger.db.",
        )
