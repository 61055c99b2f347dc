"""Rows on their way to a checker: those with the types of their columns, and the others by name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Table

from billaged.ledger.checked import types_of

Rows = Sequence[tuple[Any, ...]]


class Damaged(NamedTuple):
    """A row of which a value is not of its column's type: SQLite keeps whatever it is given."""

    table: str
    key: dict[str, Any]
    problem: str


class Chunk(NamedTuple):
    """``rows`` are whole; ``columns`` are the same rows on their side."""

    rows: Rows
    columns: Sequence[tuple[Any, ...]]
    damaged: Sequence[Damaged]


@cache
def _allowed(table: Table, names: tuple[str, ...]) -> list[set[type]]:
    return [types_of(table.c[name]) for name in names]


def chunk_of(table: Table, names: tuple[str, ...], rows: Rows) -> Chunk:
    """Sort rows of these columns; values beyond them are left as they are. For many: what is well costs little."""
    columns = list(zip(*rows, strict=True))
    allowed = _allowed(table, names)
    if all(set(map(type, values)) <= types for types, values in zip(allowed, columns, strict=False)):
        return Chunk(rows, columns, ())
    good, damaged = [], []
    for row in rows:
        named = dict(zip(names, row, strict=False))
        wrong = [name for types, name in zip(allowed, names, strict=True) if type(named[name]) not in types]
        if wrong:
            key = {column.name: named[column.name] for column in table.primary_key}
            damaged.append(Damaged(table.name, key, ", ".join(f"{name} is {named[name]!r}" for name in wrong)))
        else:
            good.append(row)
    return Chunk(good, list(zip(*good, strict=True)) or [()] * len(columns), damaged)
