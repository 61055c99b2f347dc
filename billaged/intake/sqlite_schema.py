"""The journal file's tables: made, brought up to date, and what the file says about itself."""

from __future__ import annotations

import sqlite3
import uuid
from pathlib import Path
from typing import Any, Final, NamedTuple

from billaged.intake.chain import start_of
from billaged.intake.journal import Beginning, Head
from billaged.model.errors import StorageError
from billaged.model.records import CHAIN_BYTES

SCHEMA_VERSION: Final = 2
# A row as ``JournalRow`` has it. INSERT names none: they are all, in this order.
ROW_COLUMNS: Final = "sequence, kind, received_ns, caller, payload, coalesce(chain, x'')"
SCHEMA: Final = """
CREATE TABLE journal (
    -- AUTOINCREMENT: a pruned table would else hand out old numbers again.
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    kind INTEGER NOT NULL,
    received_ns INTEGER NOT NULL,
    caller TEXT NOT NULL,
    payload BLOB NOT NULL,
    chain BLOB
);
CREATE TABLE about (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    journal_id TEXT NOT NULL,
    pruned INTEGER NOT NULL,
    -- Of the last row that has left: the first one that is there goes on from it.
    pruned_chain BLOB,
    -- Rows after this one are chained; 0 where the journal was made with a chain.
    chained_after INTEGER NOT NULL DEFAULT 0
);
"""
_LAST: Final = """max(
    about.pruned,
    coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'journal'), 0),
    coalesce((SELECT max(sequence) FROM journal), 0)
)"""
# Version 1 had no chain: it begins with the next row.
_CHAINED: Final = f"""
ALTER TABLE journal ADD COLUMN chain BLOB;
ALTER TABLE about ADD COLUMN pruned_chain BLOB;
ALTER TABLE about ADD COLUMN chained_after INTEGER NOT NULL DEFAULT 0;
UPDATE about SET chained_after = {_LAST};
"""
# One statement: all of one moment, whatever a daemon does meanwhile.
_ABOUT: Final = f"""
SELECT journal_id, pruned, pruned_chain, chained_after, {_LAST},
    (SELECT chain FROM journal WHERE sequence = {_LAST}), (SELECT max(sequence) FROM journal)
FROM about
"""


class JournalDamaged(StorageError):
    """What is in the file cannot be right, or cannot be read: a file that cannot be opened is not damaged."""


class About(NamedTuple):
    """What a journal file says about itself."""

    journal_id: str
    # Sequences up to this one have left; its chain is empty where the file does not say.
    left: Head
    beginning: Beginning
    # The last sequence ever given, and the chain that the next row goes on from; empty where rows are lost.
    head: Head
    # The last row that is there: before the head where rows were taken away. None without rows.
    newest: int | None

    @property
    def lost(self) -> tuple[int, int] | None:
        """First and last of the rows that are missing at the end; None where none is."""
        there = max(self.newest or 0, self.left.sequence)
        return (there + 1, self.head.sequence) if there < self.head.sequence else None


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables in a new file, bring those of an older one up to date.

    Raises:
        StorageError: the file is no journal, or of another version.
    """
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            raise StorageError(f"{path} holds tables but is no journal.", "Choose another data directory.")
        about = f"INSERT INTO about (one, journal_id, pruned) VALUES (1, '{uuid.uuid4()}', 0);"
        connection.executescript(f"BEGIN; {SCHEMA} {about} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    elif version == 1:
        connection.executescript(f"BEGIN IMMEDIATE; {_CHAINED} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    elif version != SCHEMA_VERSION:
        raise StorageError(
            f"the journal {path} has schema {version}, this version of billaged knows {SCHEMA_VERSION}.",
            "Use the version of billaged that wrote it.",
        )


def about(connection: sqlite3.Connection, path: Path) -> About:
    """
    Raises:
        StorageError: it does not say, or what it says is nothing.
    """
    row: tuple[Any, ...] | None = connection.execute(_ABOUT).fetchone()
    if row is None:
        raise _damaged(path, "it does not say which it is")
    journal_id, pruned, pruned_chain, chained_after, last, last_chain, newest = row
    if not isinstance(journal_id, str):
        raise _damaged(path, "it does not say which it is")
    for name, number in (("pruned", pruned), ("chained_after", chained_after), ("the last sequence", last)):
        if not isinstance(number, int) or number < 0:
            raise _damaged(path, f"{name} is {number!r}")
    if chained_after > last:
        raise _damaged(path, f"its chain begins after row {chained_after}, its rows end at {last}")
    beginning = Beginning(chained_after, start_of(journal_id))
    left = Head(pruned, pruned_chain if isinstance(pruned_chain, bytes) else b"")
    if pruned <= chained_after:
        left = Head(pruned, chain_after(pruned, None, beginning, path))
    head = Head(last, b"")
    if last == pruned:
        head = Head(last, chain_after(last, pruned_chain, beginning, path))
    elif last == newest:
        head = Head(last, chain_after(last, last_chain, beginning, path))
    return About(journal_id, left, beginning, head, newest)


def chain_after(sequence: int, value: object, beginning: Beginning, path: Path) -> bytes:
    """The chain that the row after a sequence goes on from: what is stored with the sequence, where it is chained.

    Raises:
        StorageError: that is no chain.
    """
    if sequence <= beginning.after:
        return beginning.chain if sequence == beginning.after else b""
    if not isinstance(value, bytes) or len(value) != CHAIN_BYTES:
        raise _damaged(path, f"the chain of row {sequence} is {value!r}")
    return value


def _damaged(path: Path, how: str) -> StorageError:
    return JournalDamaged(f"the journal {path} is damaged: {how}.", "Restore a backup of it.")
