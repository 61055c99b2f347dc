"""The journal in a SQLite file: WAL, every commit synced to disk before it returns."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Final

from billaged.intake.journal import JournalRow
from billaged.model.errors import DurabilityLost, StorageError

FILE_NAME: Final = "journal.db"

SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE journal (
    -- AUTOINCREMENT: a pruned table would else hand out old numbers again.
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    kind INTEGER NOT NULL,
    received_ns INTEGER NOT NULL,
    caller TEXT NOT NULL,
    payload BLOB NOT NULL
);
CREATE TABLE about (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    journal_id TEXT NOT NULL,
    pruned INTEGER NOT NULL
);
"""
_MAX_ROWS: Final = 512
_READ_ROWS: Final = 4_096
_PRUNE_ROWS: Final = 2_000
_RESTORE: Final = "Restore a backup of it."


def reason_of(error: sqlite3.Error) -> str:
    """What SQLite says, without the text that it could not read: that may be anything."""
    return str(error).split(" with text ", 1)[0]


class SqliteJournal:
    """Satisfies ``Journal``. Readers have connections of their own."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            StorageError: the file is no journal, or of another version.
        """
        self._path = path
        try:
            self._connection = self._open()
        except sqlite3.Error as error:
            raise StorageError(f"{path} cannot be used as a journal: {reason_of(error)}.", _RESTORE) from error

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False, timeout=30, cached_statements=_MAX_ROWS
        )
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                raise StorageError(f"{self._path} holds tables but is no journal.", "Choose another data directory.")
            about = f"INSERT INTO about VALUES (1, '{uuid.uuid4()}', 0);"
            connection.executescript(f"BEGIN; {_SCHEMA} {about} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            raise StorageError(
                f"the journal {self._path} has schema {version}, this version of billaged knows {SCHEMA_VERSION}.",
                "Use the version of billaged that wrote it.",
            )
        self.journal_id, self.pruned = self._about(connection)
        row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'journal'").fetchone()
        self.position: int = max(row[0] if row else 0, self.pruned)
        return connection

    def _about(self, connection: sqlite3.Connection) -> tuple[str, int]:
        """The journal's id, and up to where rows have left."""
        row = connection.execute("SELECT journal_id, pruned FROM about").fetchone()
        if row is None or not isinstance(row[0], str) or not isinstance(row[1], int):
            raise StorageError(f"the journal {self._path} is damaged: it does not say which it is.", _RESTORE)
        return row[0], row[1]

    def append(self, rows: Sequence[JournalRow]) -> None:
        try:
            if len(rows) <= _MAX_ROWS:
                # One statement is a transaction of its own. It gives up the interpreter's lock once,
                # where BEGIN, parts and COMMIT would have to win it back each time.
                self._connection.execute(_insert(len(rows)), tuple(chain.from_iterable(rows)))
            else:
                self._connection.execute("BEGIN IMMEDIATE")
                for start in range(0, len(rows), _MAX_ROWS):
                    part = rows[start : start + _MAX_ROWS]
                    self._connection.execute(_insert(len(part)), tuple(chain.from_iterable(part)))
                self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            # Never retried: after a failed sync the pages may be marked clean though they are not on disk.
            raise DurabilityLost(
                f"the journal cannot be committed: {error}.",
                "Nothing of it was acknowledged. See the disk and restart.",
            ) from error
        self.position = rows[-1].sequence

    def read(self, after: int, *, whole: bool = True) -> Iterator[list[JournalRow]]:
        end = self.position
        connection = sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True, timeout=30)
        try:
            while rows := self._chunk(connection, after):
                if whole and rows[-1].sequence != after + len(rows):
                    self._check_whole(connection, after, rows)
                yield rows
                after = rows[-1].sequence
            if whole and after < end:
                self._check_nothing_lost(connection, after + 1, end)
        finally:
            connection.close()

    def _chunk(self, connection: sqlite3.Connection, after: int) -> list[JournalRow]:
        query = "SELECT sequence, kind, received_ns, caller, payload FROM journal WHERE sequence > ?"
        try:
            rows = connection.execute(f"{query} ORDER BY sequence LIMIT ?", (after, _READ_ROWS)).fetchall()
        except sqlite3.Error as error:
            raise StorageError(
                f"the journal {self._path} cannot be read after row {after}: {reason_of(error)}.", _RESTORE
            ) from error
        return [JournalRow(*row) for row in rows]

    def _check_whole(self, connection: sqlite3.Connection, after: int, rows: Sequence[JournalRow]) -> None:
        expected = after + 1
        for row in rows:
            if row.sequence != expected:
                self._check_nothing_lost(connection, expected, row.sequence - 1)
            expected = row.sequence + 1

    def _check_nothing_lost(self, connection: sqlite3.Connection, first: int, last: int) -> None:
        """These rows are not there: that is well where they have left, maybe just now."""
        first = max(first, self._about(connection)[1] + 1)
        if first > last:
            return
        missing = f"row {first} is" if first == last else f"rows {first} to {last} are"
        raise StorageError(
            f"the journal {self._path} is damaged: {missing} missing, acknowledged and not yet in the ledger.",
            "Restore a backup that has them; 'billaged journal verify' says what else is missing.",
        )

    def newest_received_ns(self) -> int:
        row = self._connection.execute(
            "SELECT sequence, received_ns FROM journal ORDER BY sequence DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return 0
        if not isinstance(row[1], int):
            raise StorageError(
                f"journal row {row[0]} in {self._path} is damaged: it was received at {row[1]!r}.", _RESTORE
            )
        return row[1]

    def prune(self, through: int) -> None:
        # A little at a time: those who wait for a commit wait for this too.
        through = min(through, self.position, self.pruned + _PRUNE_ROWS)
        if through <= self.pruned:
            return
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("DELETE FROM journal WHERE sequence <= ?", (through,))
            self._connection.execute("UPDATE about SET pruned = ?", (through,))
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise DurabilityLost(f"the journal cannot be pruned: {error}.", "See the disk and restart.") from error
        self.pruned = through

    def close(self) -> None:
        self._connection.close()


@lru_cache(maxsize=_MAX_ROWS)
def _insert(rows: int) -> str:
    return f"INSERT INTO journal VALUES {', '.join(['(?, ?, ?, ?, ?)'] * rows)}"
