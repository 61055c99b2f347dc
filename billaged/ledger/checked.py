"""What comes out of a ledger file, checked: SQLite keeps whatever it is given, and a file may have been changed."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from sqlite3 import Error as SqliteError
from typing import Any, Final, TypeVar

from sqlalchemy import Column, Connection, Integer, LargeBinary, Table, Text, select
from sqlalchemy.exc import DBAPIError

from billaged.aggregator.buckets import BucketClock
from billaged.aggregator.changes import Checkpoint
from billaged.ledger import tables as t
from billaged.model.errors import StorageError
from billaged.model.records import CHAIN_BYTES, FoldRules
from billaged.wire.codec import rules_from_json

RESTORE_OR_FOLD: Final = (
    "Restore a backup of the ledger, or fold the journal anew with 'billaged journal replay --into NEW' and put that in"
    " its place with 'billaged ledger restore NEW'."
)

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
        raise StorageError(f"the ledger cannot be read: {reason_of(error)}.", RESTORE_OR_FOLD) from error


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
            raise StorageError(
                f"the ledger's {table.name} row ({named}) is damaged: {name} is {value!r}.", RESTORE_OR_FOLD
            )
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


def checkpoint_row(connection: Connection) -> Any:
    """The checkpoint's row as it is; None in a ledger that no daemon has taken up yet.

    Raises:
        StorageError: there is more than one.
    """
    return only_row(connection.execute(select(t.checkpoint).limit(2)).all())


def only_row(rows: Sequence[Any]) -> Any:
    """The checkpoint's row, of the first two that were found; None where there is none.

    Raises:
        StorageError: there is more than one.
    """
    if len(rows) > 1:
        raise StorageError("the ledger's checkpoint is damaged: it has more than one row.", RESTORE_OR_FOLD)
    return next(iter(rows), None)


def checkpoint_of(row: Any) -> Checkpoint:
    """
    Raises:
        StorageError: the checkpoint is none.
    """
    typed(t.checkpoint, row._fields, row)
    rules, book, clock, chain = rules_of(row.rules), book_of(row.rules), clock_of(row.clock), chain_of(row.chain)
    return Checkpoint(
        row.position, row.window_number, row.window_start_ns, rules, clock, chain, row.passed_ns, tuple(book)
    )


def rules_of(text: str | None) -> FoldRules | None:
    """The rules in force; None before the first record of them.

    Raises:
        StorageError: these are no rules.
    """
    if text is None:
        return None
    saved = _rules_saved(text)
    # Earlier versions kept those in force only, and nothing around them.
    return _checked_rules(saved["all"][saved["now"]] if "all" in saved else saved, text)


def book_of(text: str | None) -> list[FoldRules]:
    """All rules so far, each once; links name them by their place.

    Raises:
        StorageError: these are no rules.
    """
    if text is None:
        return []
    saved = _rules_saved(text)
    return [_checked_rules(rules, text) for rules in saved["all"]] if "all" in saved else []


def _rules_saved(text: str) -> dict[str, Any]:
    try:
        saved = json.loads(text)
    except ValueError as error:
        raise _damaged("rules", text) from error
    if not isinstance(saved, dict):
        raise _damaged("rules", text)
    if "all" in saved:
        every, now = saved["all"], saved.get("now")
        if not (isinstance(every, list) and isinstance(now, int) and 0 <= now < len(every)):
            raise _damaged("rules", text)
    return saved


def _checked_rules(saved: object, text: str) -> FoldRules:
    try:
        rules = rules_from_json(saved) if isinstance(saved, dict) else None
    except TypeError as error:
        raise _damaged("rules", text) from error
    if rules is None:
        raise _damaged("rules", text)
    *numbers, thresholds = rules
    if not all(type(value) is int and value > 0 for value in [*numbers, *dict(thresholds).values()]):
        raise _damaged("rules", text)
    return rules


def chain_of(value: object) -> bytes:
    """
    Raises:
        StorageError: this is no chain.
    """
    if value is None:
        return b""
    if not isinstance(value, bytes) or len(value) != CHAIN_BYTES:
        raise _damaged("chain", value)
    return value


def listed_vms(instance_id: str, text: str) -> list[str]:
    """The VMs that an instance lists, sorted.

    Raises:
        StorageError: this is no list of ids.
    """
    try:
        vm_ids = json.loads(text)
    except ValueError:
        vm_ids = None
    if not isinstance(vm_ids, list) or not all(isinstance(vm_id, str) for vm_id in vm_ids):
        raise StorageError(
            f"the ledger's instances row (instance_id {instance_id!r}) is damaged: active_vms is {text!r}.",
            RESTORE_OR_FOLD,
        )
    return vm_ids


def clock_of(text: str) -> BucketClock:
    """
    Raises:
        StorageError: this is no clock.
    """
    try:
        saved = json.loads(text)
        saved["waiting"] = tuple((edge, passed) for edge, passed in saved["waiting"])
        clock = BucketClock(**saved)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged("clock", text) from error
    times = (clock.closed_through_ns, clock.time_ns or 0, clock.newest_sample_ns, clock.latest_ns or 0)
    numbers = (*times, *sum(clock.waiting, ()))
    if not all(isinstance(number, int) for number in numbers):
        raise _damaged("clock", text)
    return clock


def _damaged(column: str, text: object) -> StorageError:
    return StorageError(f"the ledger's checkpoint is damaged: its {column} is {text!r}.", RESTORE_OR_FOLD)


def types_of(column: Column[Any]) -> set[type]:
    """What a value of this column may be."""
    return {_python_type(column.type), type(None)} if column.nullable else {_python_type(column.type)}


def _python_type(column_type: object) -> type:
    if isinstance(column_type, Text):
        return str
    if isinstance(column_type, LargeBinary):
        return bytes
    # BigInteger is one, too.
    if isinstance(column_type, Integer):
        return int
    raise TypeError(f"no ledger column is of {column_type!r}")
