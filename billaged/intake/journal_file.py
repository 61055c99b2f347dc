"""A journal file as a reader sees it: read-only, a little at a time, daemon running or not."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from billaged.intake.begun_anew import read_begun_anew
from billaged.intake.journal import BegunAnew, Head, JournalRow
from billaged.intake.read_only import read_only_uri
from billaged.intake.sqlite import reason_of
from billaged.intake.sqlite_schema import ROW_COLUMNS, SCHEMA_VERSION, About, JournalDamaged, about
from billaged.model.errors import StorageError

_READ_ROWS: Final = 4_096
_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class JournalFile:
    """Reads in short transactions of its own: a long one would keep the daemon from shortening its log."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            StorageError: there is no journal, or it cannot be read.
        """
        self.path = path
        if not path.exists():
            raise StorageError(
                f"there is no journal at {path}.",
                "Point --data-dir or UNKEY_BILLAGED_DATA_DIR at the daemon's data directory.",
            )
        try:
            self._connection = sqlite3.connect(read_only_uri(path), uri=True, timeout=30)
        except sqlite3.Error as error:
            raise StorageError(f"the journal {path} cannot be opened: {error}.") from error
        try:
            self._check_version()
            self.journal_id: str = self.about().journal_id
        except StorageError:
            self._connection.close()
            raise

    def _check_version(self) -> None:
        version = self._value("PRAGMA user_version")
        if version == 1:
            raise StorageError(
                f"the journal {self.path} is of a version before this one.",
                "Start the daemon once: it brings it up to date.",
            )
        if version != SCHEMA_VERSION:
            raise StorageError(
                f"{self.path} is no journal, or of another version: its schema is {version},"
                f" this version of billaged knows {SCHEMA_VERSION}."
            )

    def about(self) -> About:
        """What the file says about itself, of one moment. Grows while a daemon runs."""
        try:
            return about(self._connection, self.path)
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def begun_anew(self) -> list[BegunAnew]:
        """What it says of files before it that were lost; in order, and empty as a rule."""
        try:
            return read_begun_anew(self._connection, self.path)
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def pruned(self) -> int:
        """Sequences up to here have left; 0 for none. Grows while a daemon runs."""
        return self.about().left.sequence

    def end(self) -> int:
        """The last sequence that was ever appended; 0 for none. Grows while a daemon runs."""
        return self.about().head.sequence

    def head(self) -> Head:
        """What the next row goes on from.

        Raises:
            StorageError: rows are missing at the end.
        """
        about = self.about()
        if about.lost is not None:
            raise StorageError(
                f"the journal {self.path} is damaged: its rows end before row {about.lost[0]},"
                f" though {about.head.sequence} were given.",
                "Restore a backup of it.",
            )
        return about.head

    def integrity_problems(self) -> list[str]:
        """What SQLite finds wrong with the file's structure, and what acts in it by itself; reads all of it."""
        found = [str(row[0]) for row in self._query("PRAGMA integrity_check(10)")]
        # Either changes what is written or read, and no row says so.
        foreign = self._query(
            "SELECT type, name FROM sqlite_schema WHERE type IN ('trigger', 'view') ORDER BY name LIMIT 10"
        )
        return [*([] if found == ["ok"] else found), *(f"it has a {kind}, {name!r}" for kind, name in foreign)]

    def rows(self, after: int, through: int) -> Iterator[list[JournalRow]]:
        """The rows of (after, through] that are there, in order, in chunks.

        Raises:
            StorageError: they cannot be read; the message names the place.
        """
        query = f"SELECT {ROW_COLUMNS} FROM journal"
        query += " WHERE sequence > ? AND sequence <= ? ORDER BY sequence LIMIT ?"
        while True:
            try:
                rows = self._query(query, after, through, _READ_ROWS)
            except StorageError as error:
                # Of the same kind: damage is told from what may pass.
                raise type(error)(f"{error.problem} That is after row {after}.", error.hint) from error
            if not rows:
                return
            yield [JournalRow(*row) for row in rows]
            after = rows[-1][0]

    def close(self) -> None:
        self._connection.close()

    def _value(self, query: str) -> Any:
        rows = self._query(query)
        if not rows:
            raise StorageError(f"the journal {self.path} is damaged: {query!r} finds nothing.", "Restore a backup.")
        return rows[0][0]

    def _query(self, query: str, *values: int) -> list[Any]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: sqlite3.Error) -> StorageError:
        # Its low byte is the code, the rest says more.
        is_damage = (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _DAMAGE
        kind = JournalDamaged if is_damage else StorageError
        return kind(f"the journal {self.path} cannot be read: {reason_of(error)}.", "Restore a backup of it.")
