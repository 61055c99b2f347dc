"""What comes out of a ledger file, checked: SQLite keeps whatever it is given, and a file may have been changed."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from sqlite3 import Error as SqliteError
from typing import Any, Final, TypeVar

from sqlalchemy import Integer, LargeBinary, Table, Text
from sqlalchemy.exc import DBAPIError

from billaged.aggregator.buckets import BucketClock
from billaged.aggregator.changes import Checkpoint
from billaged.ledger import tables as t
from billaged.model.errors import StorageError
from billaged.model.records import FoldRules

_RESTORE: Final = "Restore a backup of the ledger."

Rows = TypeVar("Rows", bound=Sequence[Sequence[Any]])


@contextmanager
def readable() -> Iterator[None]:
    """
    Raises:
        StorageError: the file could not be read, or holds text that is none.
    """
    try:
        yield
    except (DBAPIError, SqliteError) as error:
        raise StorageError(f"the ledger cannot be read: {reason_of(error)}.", _RESTORE) from error


def reason_of(error: DBAPIError | SqliteError) -> str:
    """What the database says, without the text that it could not read: that may be anything."""
    said = error.orig if isinstance(error, DBAPIError) else error
    return str(said).split(" with text ", 1)[0]


def typed(table: Table, names: Collection[str], row: Sequence[Any]) -> Sequence[Any]:
    """The row of these columns, as it is.

    Raises:
        StorageError: a value is not of its column's type; the message names the row.
    """
    for name, value in zip(names, row, strict=True):
        column = table.c[name]
        if not (isinstance(value, _python_type(column.type)) or (value is None and column.nullable)):
            keys = [column.name for column in table.primary_key]
            named = ", ".join(f"{key} {got!r}" for key, got in zip(names, row, strict=True) if key in keys)
            raise StorageError(f"the ledger's {table.name} row ({named}) is damaged: {name} is {value!r}.", _RESTORE)
    return row


def typed_rows(table: Table, names: Collection[str], rows: Rows) -> Rows:
    """The rows of these columns, as they are. For many: what is well costs little.

    Raises:
        StorageError: as ``typed``.
    """
    for name, values in zip(names, zip(*rows, strict=True), strict=False):
        column = table.c[name]
        found = set(map(type, values)) - {_python_type(column.type)}
        if found and not (column.nullable and found == {type(None)}):
            for row in rows:
                typed(table, names, row)
    return rows


def checkpoint_of(row: Any) -> Checkpoint:
    """
    Raises:
        StorageError: the checkpoint is none.
    """
    typed(t.checkpoint, row._fields, row)
    return Checkpoint(row.position, row.window_number, row.window_start_ns, rules_of(row.rules), _clock_of(row.clock))


def rules_of(text: str | None) -> FoldRules | None:
    """
    Raises:
        StorageError: these are no rules.
    """
    if text is None:
        return None
    try:
        rules = FoldRules(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise _damaged("rules", text) from error
    if not all(isinstance(value, int) and value > 0 for value in rules):
        raise _damaged("rules", text)
    return rules


def _clock_of(text: str) -> BucketClock:
    try:
        saved = json.loads(text)
        # Earlier versions took each tick's time for the time.
        time_ns = saved["time_ns"] if "time_ns" in saved else saved["newest_edge_ns"] or None
        waiting = tuple((edge, passed) for edge, passed in saved["waiting"])
        clock = BucketClock(saved["closed_through_ns"], time_ns, saved.get("newest_sample_ns", 0), waiting)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged("clock", text) from error
    numbers = (clock.closed_through_ns, clock.time_ns or 0, clock.newest_sample_ns, *sum(waiting, ()))
    if not all(isinstance(number, int) for number in numbers):
        raise _damaged("clock", text)
    return clock


def _damaged(column: str, text: str) -> StorageError:
    return StorageError(f"the ledger's checkpoint is damaged: its {column} is {text!r}.", _RESTORE)


def _python_type(column_type: object) -> type:
    if isinstance(column_type, Text):
        return str
    if isinstance(column_type, LargeBinary):
        return bytes
    # BigInteger is one, too.
    if isinstance(column_type, Integer):
        return int
    raise TypeError(f"no ledger column is of {column_type!r}")
