"""The journal in a SQLite file: WAL, every commit synced to disk before it returns."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from itertools import chain as chained
from pathlib import Path
from typing import Final

from billaged.intake.begun_anew import read_begun_anew
from billaged.intake.chain import Follower
from billaged.intake.journal import BegunAnew, Head, JournalRow, has_types
from billaged.intake.read_only import read_only_uri
from billaged.intake.sqlite_schema import ROW_COLUMNS, About, about, chain_after, prepare
from billaged.model.errors import DurabilityLost, StorageError

FILE_NAME: Final = "journal.db"

_MAX_ROWS: Final = 512
_READ_ROWS: Final = 4_096
_PRUNE_ROWS: Final = 2_000
_RESTORE: Final = "Restore a backup of it."
_UNUSABLE: Final = (
    "Restore a backup of it; where it is damaged and none is to be had, 'billaged journal begin-anew' goes on behind a"
    " ledger that is whole."
)
_MISSING: Final = (
    "Restore a backup of it that is whole ('billaged journal verify' tells); where none is to be had, 'billaged journal"
    " begin-anew' goes on without these rows, if the ledger has all that is there."
)
_VERIFY: Final = "Restore a backup of it that is whole; 'billaged journal verify' names what is wrong."


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
            self._connection = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, timeout=30, cached_statements=_MAX_ROWS
            )
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        try:
            found = self._prepare()
            self.begun_anew: Sequence[BegunAnew] = read_begun_anew(self._connection, path)
        except sqlite3.Error as error:
            self._connection.close()
            raise self._unusable(error) from error
        except StorageError:
            self._connection.close()
            raise
        self.journal_id, self.beginning = found.journal_id, found.beginning
        self.pruned: int = found.left.sequence
        self.head: Head = found.head

    def _prepare(self) -> About:
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        prepare(self._connection, self._path)
        found = about(self._connection, self._path)
        if found.lost is not None:
            raise self._missing(*found.lost)
        return found

    @property
    def position(self) -> int:
        return self.head.sequence

    def append(self, rows: Sequence[JournalRow]) -> None:
        try:
            if len(rows) <= _MAX_ROWS:
                # One statement is a transaction of its own. It gives up the interpreter's lock once,
                # where BEGIN, parts and COMMIT would have to win it back each time.
                self._connection.execute(_insert(len(rows)), tuple(chained.from_iterable(rows)))
            else:
                self._connection.execute("BEGIN IMMEDIATE")
                for start in range(0, len(rows), _MAX_ROWS):
                    part = rows[start : start + _MAX_ROWS]
                    self._connection.execute(_insert(len(part)), tuple(chained.from_iterable(part)))
                self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            # Never retried: after a failed sync the pages may be marked clean though they are not on disk.
            raise DurabilityLost(
                f"the journal cannot be committed: {error}.",
                "Nothing of it was acknowledged. See the disk and restart.",
            ) from error
        self.head = Head(rows[-1].sequence, rows[-1].chain)

    def chain_at(self, sequence: int) -> bytes:
        query = "SELECT chain FROM journal WHERE sequence = ?"
        with closing(self._reader()) as connection:
            try:
                row = connection.execute(query, (sequence,)).fetchone()
            except sqlite3.Error as error:
                raise self._unreadable(error) from error
            left = self._about(connection).left
        if row is None and sequence != left.sequence:
            raise self._missing(sequence, sequence)
        return left.chain if row is None else chain_after(sequence, row[0], self.beginning, self._path)

    def read(self, after: int, *, whole: bool = True) -> Iterator[list[JournalRow]]:
        end = self.position
        with closing(self._reader()) as connection:
            follower = Follower(self.beginning, self._known(connection, after)) if whole else None
            while rows := self._chunk(connection, after):
                if follower is not None:
                    self._check_whole(connection, after, rows, follower)
                yield rows
                after = rows[-1].sequence
            if whole and after < end:
                self._check_nothing_lost(connection, after + 1, end)

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
            # The first row that stays goes on from the last one that leaves.
            chain = "(SELECT chain FROM journal WHERE sequence = ?1)"
            self._connection.execute(f"UPDATE about SET pruned = ?1, pruned_chain = {chain}", (through,))
            self._connection.execute("DELETE FROM journal WHERE sequence <= ?", (through,))
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise DurabilityLost(f"the journal cannot be pruned: {error}.", "See the disk and restart.") from error
        self.pruned = through

    def close(self) -> None:
        self._connection.close()

    def _reader(self) -> sqlite3.Connection:
        return sqlite3.connect(read_only_uri(self._path), uri=True, timeout=30)

    def _known(self, connection: sqlite3.Connection, after: int) -> Head | None:
        """What the row after a sequence goes on from, as far as that is there."""
        rows = self._chunk(connection, after - 1, 1)
        if rows and rows[0].sequence == after:
            return Head(after, rows[0].chain) if has_types(rows[0]) and rows[0].chain else None
        left = self._about(connection).left
        return left if left.sequence == after else None

    def _chunk(self, connection: sqlite3.Connection, after: int, most: int = _READ_ROWS) -> list[JournalRow]:
        query = f"SELECT {ROW_COLUMNS} FROM journal WHERE sequence > ? ORDER BY sequence LIMIT ?"
        try:
            rows = connection.execute(query, (after, most)).fetchall()
        except sqlite3.Error as error:
            raise self._unreadable(error, f" after row {after}") from error
        return [JournalRow(*row) for row in rows]

    def _check_whole(
        self, connection: sqlite3.Connection, after: int, rows: Sequence[JournalRow], follower: Follower
    ) -> None:
        expected = after + 1
        for row in rows:
            if row.sequence != expected:
                self._check_nothing_lost(connection, expected, row.sequence - 1)
            if not follower.goes_on(row):
                raise StorageError(
                    f"the journal {self._path} is damaged: row {row.sequence} was changed;"
                    " it does not go on from the row before it.",
                    _VERIFY,
                )
            expected = row.sequence + 1

    def _check_nothing_lost(self, connection: sqlite3.Connection, first: int, last: int) -> None:
        """These rows are not there: that is well where they have left, maybe just now."""
        first = max(first, self._about(connection).left.sequence + 1)
        if first <= last:
            raise self._missing(first, last)

    def _about(self, connection: sqlite3.Connection) -> About:
        try:
            return about(connection, self._path)
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def _missing(self, first: int, last: int) -> StorageError:
        missing = f"row {first} is" if first == last else f"rows {first} to {last} are"
        return StorageError(f"the journal {self._path} is damaged: {missing} missing, though acknowledged.", _MISSING)

    def _unusable(self, error: sqlite3.Error) -> StorageError:
        return StorageError(f"{self._path} cannot be used as a journal: {reason_of(error)}.", _UNUSABLE)

    def _unreadable(self, error: sqlite3.Error, where: str = "") -> StorageError:
        return StorageError(f"the journal {self._path} cannot be read{where}: {reason_of(error)}.", _RESTORE)


@lru_cache(maxsize=_MAX_ROWS)
def _insert(rows: int) -> str:
    return f"INSERT INTO journal VALUES {', '.join(['(?, ?, ?, ?, ?, ?)'] * rows)}"
