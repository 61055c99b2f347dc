"""Many rows in few statements.

Each statement a driver steps through gives up the interpreter's lock and must win
it back from a busy event loop; row by row that can take a hundred times as long as the
rows themselves (bench/README.md). So rows go in statements of many VALUES, in sizes that
are powers of two, so that the driver's statement cache holds them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final

from sqlalchemy import Connection, Table

_MAX_ROWS: Final = 512


def write_rows(
    connection: Connection,
    table: Table,
    columns: tuple[str, ...],
    rows: Sequence[Sequence[Any]],
    on_conflict: str = "",
) -> None:
    """INSERT the rows. ``on_conflict`` is the statement's end; each key may come once in a call."""
    style = connection.dialect.paramstyle
    start = 0
    while start < len(rows):
        size = min(_MAX_ROWS, 1 << ((len(rows) - start).bit_length() - 1))
        sql = _statement(table.name, columns, size, on_conflict, style)
        connection.exec_driver_sql(sql, tuple(chain.from_iterable(rows[start : start + size])))
        start += size


def replacing(table: Table, columns: tuple[str, ...]) -> str:
    """ON CONFLICT: the new row replaces the old one."""
    keys = [column.name for column in table.primary_key]
    changed = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in keys)
    return f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {changed}"


@lru_cache(maxsize=256)
def _statement(table: str, columns: tuple[str, ...], size: int, on_conflict: str, style: str) -> str:
    mark = "?" if style == "qmark" else "%s"
    row = f"({', '.join([mark] * len(columns))})"
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([row] * size)} {on_conflict}"
