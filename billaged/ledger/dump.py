"""Canonical dumps: two ledgers are equal when these are.

Every derived table, ordered, without what a replay may do differently: the
checkpoint, the epoch, and the packed state (whose meaning the other columns carry on).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import Connection, Engine, select

from billaged.aggregator import changes as c
from billaged.ledger import tables as t
from billaged.ledger.checked import typed

_SESSIONS: Final = tuple(name for name in c.SESSION_COLUMNS if name not in ("newest", "state"))

DUMPED: Final = {
    "sessions": (t.sessions, _SESSIONS, 2),
    "facts": (t.facts, c.FACT_COLUMNS, 4),
    "corrections": (t.corrections, c.CORRECTION_COLUMNS, 5),
    "gaps": (t.gaps, c.GAP_COLUMNS, 3),
    "anomalies": (t.anomalies, c.ANOMALY_COLUMNS, 3),
    "dead_letters": (t.dead_letters, ("sequence", "kind", "reason"), 1),
    "instances": (t.instances, c.INSTANCE_COLUMNS, 1),
    "reported_gaps": (t.reported_gaps, c.REPORTED_GAP_COLUMNS, 1),
    "tallies": (t.tallies, ("name", "value"), 1),
}


def dump_rows(ledger: Engine | Connection, table: str) -> Iterator[tuple[Any, ...]]:
    """The rows of one table in the order of its key. Over one connection all tables are of one moment.

    Raises:
        StorageError: a value is not of its column's type.
    """
    if isinstance(ledger, Engine):
        with ledger.connect() as connection:
            yield from dump_rows(connection, table)
        return
    source, names, key_length = DUMPED[table]
    columns = [source.c[name] for name in names]
    for row in ledger.execute(select(*columns).order_by(*columns[:key_length])):
        yield tuple(typed(source, names, row))


def dump(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """All of it; for ledgers that fit in memory."""
    return {table: list(dump_rows(engine, table)) for table in DUMPED}
