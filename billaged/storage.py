"""Journal and ledger, opened together: that they belong together is checked before anything is folded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from billaged.aggregator.changes import Checkpoint
from billaged.directory import DataDirectory
from billaged.intake import sqlite as journal_file
from billaged.intake.journal import Journal
from billaged.intake.memory import MemoryJournal
from billaged.intake.sqlite import SqliteJournal
from billaged.ledger import database
from billaged.ledger.store import LedgerStore
from billaged.model.errors import StorageError
from billaged.room import full_disk_named

# There while a restore puts files into their places; what is in them until it is gone is of two ages.
RESTORE_UNFINISHED: Final = "restore.unfinished"
_BEGIN_ANEW: Final = "'billaged journal begin-anew' goes on behind the ledger in a new journal"


class Stores(NamedTuple):
    journal: Journal
    ledger: LedgerStore

    def close(self) -> None:
        self.ledger.close()
        self.journal.close()


def _tell_nobody(_said: str) -> None:
    pass


@full_disk_named()
def open_stores(directory: DataDirectory | None, tell: Callable[[str], None] = _tell_nobody) -> Stores:
    """The journal and the ledger of a data directory; both in memory without one.

    ``tell`` hears again and again that a migration of the ledger, which may take long, goes on.

    Raises:
        StorageError: one cannot be used, or they do not belong together.
    """
    if directory is None:
        memory = MemoryJournal()
        return Stores(memory, LedgerStore(database.open_for_writing(None), memory.journal_id))
    check_restored(directory.path)
    _check_not_alone(directory.path / database.FILE_NAME, directory.path / journal_file.FILE_NAME)
    with ExitStack() as refused:
        journal = SqliteJournal(directory.path / journal_file.FILE_NAME)
        refused.callback(journal.close)
        engine = database.open_for_writing(directory.path / database.FILE_NAME, tell)
        refused.callback(engine.dispose)
        ledger = LedgerStore(engine, journal.journal_id)
        check_together(journal, ledger.checkpoint())
        refused.pop_all()
    return Stores(journal, ledger)


def check_restored(directory: Path) -> None:
    if (directory / RESTORE_UNFINISHED).exists():
        raise StorageError(
            f"a restore into {directory} was broken off half-way: not all files are in their places.",
            "Do it again; what was there before it is in the folder replaced-... there.",
        )


def _check_not_alone(ledger: Path, journal: Path) -> None:
    """Opening it would make a new journal, and one that is only empty by mistake looks like another's."""
    if ledger.exists() and not journal.exists():
        raise StorageError(
            f"there is a ledger, {ledger}, but no {journal.name} beside it.",
            f"Put back the {journal.name} that belongs to it. Where none is to be had, {_BEGIN_ANEW}; or move"
            f" {ledger.name} away, and billaged begins with nothing.",
        )
    if ledger.exists() and journal.stat().st_size == 0:
        # SQLite would take it for a new one, and throw away the WAL beside it with what is in that.
        raise StorageError(
            f"{journal} is empty, but there is a ledger, {ledger}, that was folded from it.",
            f"Put back the {journal.name} that belongs to it; keep {journal.name}-wal, if there is one."
            f" Where none is to be had, {_BEGIN_ANEW}.",
        )


def check_together(journal: Journal, folded: Checkpoint) -> None:
    """Whether a start can go on from here; ``folded`` is the checkpoint of a ledger of this journal.

    Raises:
        StorageError: it cannot.
    """
    position = folded.position
    if journal.position < position:
        raise StorageError(
            f"the journal ends at {journal.position}, but the ledger has folded up to {position}:"
            " the journal is older than the ledger.",
            f"Put back the newer journal.db. Where that is lost, {_BEGIN_ANEW}, and what is billed stays billed; an"
            " older ledger.db would lose that.",
        )
    if position < journal.pruned:
        raise StorageError(
            f"the ledger has folded up to {position}, but the journal begins after {journal.pruned}:"
            " the ledger is older than what the journal still holds.",
            "Put back a newer ledger.db; or fold the journal anew from its segments with 'billaged journal replay"
            " --into NEW', and put that in its place with 'billaged ledger restore NEW'.",
        )
    chain = journal.chain_at(position) if position > journal.beginning.after else b""
    if folded.chain != chain:
        raise StorageError(
            f"row {position} of the journal is not the one that the ledger has folded: the journal was put back"
            " from an older copy and has gone on since, or it was changed.",
            "Put back the journal.db that the ledger was folded from, or the ledger.db that is as old as this journal's"
            " copy; 'billaged journal verify' says more. Where neither is to be had, " + _BEGIN_ANEW + ".",
        )
