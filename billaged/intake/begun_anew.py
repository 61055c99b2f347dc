"""What a journal file says of one before it that was lost: ``billaged journal begin-anew`` writes it down.

The new file has the lost one's id, and its chain goes on from the ledger's: it is the same journal, without some rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from billaged.intake.journal import BegunAnew, Head
from billaged.intake.sqlite_schema import SCHEMA, SCHEMA_VERSION, JournalDamaged

# Only in a file that was begun anew: others are as they always were.
_TABLE: Final = """
CREATE TABLE begun_anew (
    after INTEGER PRIMARY KEY,
    first_lost INTEGER NOT NULL,
    given INTEGER NOT NULL,
    begun_ns INTEGER NOT NULL,
    set_aside TEXT NOT NULL
);
"""


def write_anew(
    connection: sqlite3.Connection, journal_id: str, chained_after: int, left: Head, story: Sequence[BegunAnew]
) -> None:
    """Make the tables of a journal in an empty file; its next row goes on from ``left``."""
    connection.executescript(f"BEGIN; {SCHEMA} {_TABLE} PRAGMA user_version = {SCHEMA_VERSION};")
    values = (journal_id, left.sequence, left.chain or None, chained_after)
    connection.execute("INSERT INTO about VALUES (1, ?, ?, ?, ?)", values)
    connection.execute("INSERT INTO sqlite_sequence VALUES ('journal', ?)", (left.sequence,))
    connection.executemany("INSERT INTO begun_anew VALUES (?, ?, ?, ?, ?)", story)
    connection.execute("COMMIT")


def read_begun_anew(connection: sqlite3.Connection, path: Path) -> list[BegunAnew]:
    """In order; none in most files.

    Raises:
        StorageError: what it says is nothing.
    """
    if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'begun_anew'").fetchone() is None:
        return []
    rows = connection.execute(
        "SELECT after, first_lost, given, begun_ns, set_aside FROM begun_anew ORDER BY after"
    ).fetchall()
    for row in rows:
        if not (all(isinstance(number, int) and number >= 0 for number in row[:4]) and isinstance(row[4], str)):
            raise JournalDamaged(
                f"the journal {path} is damaged: what it says of its beginning is {row!r}.", "Restore a backup of it."
            )
    return [BegunAnew(*row) for row in rows]
