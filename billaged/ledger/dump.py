"""Canonical dumps: two ledgers are equal when these are.

Every derived table, ordered, without what a replay may do differently: the
checkpoint, the epoch, and the packed state (whose meaning the other columns carry on).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import numpy as np
from sqlalchemy import ColumnElement, Connection, Engine, Table, func, select

from billaged.aggregator import changes as c
from billaged.aggregator.columns import LISTED
from billaged.aggregator.persistence import STATE
from billaged.ledger import tables as t
from billaged.ledger.checked import typed
from billaged.model.time import HOUR_NANOS

_SESSIONS: Final = tuple(name for name in c.SESSION_COLUMNS if name not in ("newest", "state"))

DUMPED: Final = {
    "sessions": (t.sessions, _SESSIONS, 2),
    "facts": (t.facts, c.FACT_COLUMNS, 4),
    "corrections": (t.corrections, c.CORRECTION_COLUMNS, 5),
    "gaps": (t.gaps, c.GAP_COLUMNS, 3),
    "anomalies": (t.anomalies, c.ANOMALY_COLUMNS, 5),
    "dead_letters": (t.dead_letters, ("sequence", "kind", "reason"), 1),
    "instances": (t.instances, c.INSTANCE_COLUMNS, 1),
    "silences": (t.silences, c.SILENCE_COLUMNS, 3),
    "reported_gaps": (t.reported_gaps, c.REPORTED_GAP_COLUMNS, 1),
    "tallies": (t.tallies, ("name", "value"), 1),
}
# What a proof compares beside that: what the fold carries on in a session, and what came with a dead letter.
PROVED: Final = DUMPED | {
    "sessions": (t.sessions, (*_SESSIONS, "newest", "state"), 2),
    "dead_letters": (t.dead_letters, ("sequence", "kind", "reason", "received_ns", "caller", "payload"), 1),
}
# No row of these is ever changed.
_ONLY_ADDED_TO: Final = (t.corrections, t.anomalies, t.dead_letters, t.reported_gaps)
# No bucket is longer: the setting allows no more.
BUCKET_MAX_NANOS: Final = HOUR_NANOS


class Since(NamedTuple):
    """A position of the ledger, and up to where buckets were closed there: rows that came later, or could change."""

    position: int
    closed_through_ns: int


def proved_rows(ledger: Connection, table: str, since: Since | None = None) -> Iterator[tuple[Any, ...]]:
    """As ``dump_rows``, with the columns of ``PROVED``; a state and a payload are digests, to be compared and shown.

    Raises:
        StorageError: a value is not of its column's type.
    """
    source, names, key_length = PROVED[table]
    told: dict[str, Callable[[bytes], str]] = {"state": _state_digest, "payload": _digest}
    places = [(index, told[name]) for index, name in enumerate(names) if name in told]
    for row in _rows(ledger, source, names, key_length, since):
        if places:
            values = list(row)
            for index, tell in places:
                values[index] = tell(values[index])
            yield tuple(values)
        else:
            yield row


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=8).hexdigest()


def _state_digest(state: bytes) -> str:
    """Of what does not depend on when the ledger was written.

    Who lists an ended session is told when it is taken up again; a base is void in another window than its own.
    """
    if len(state) % 8 or len(state) < 8 * STATE["window_number"].start:
        return _digest(state)
    values = np.frombuffer(state, dtype="<i8")[: STATE["window_number"].start].copy()
    values[STATE["flags"]] &= ~LISTED
    return _digest(values.tobytes())


def dump_rows(ledger: Engine | Connection, table: str, since: Since | None = None) -> Iterator[tuple[Any, ...]]:
    """The rows of one table in the order of its key. Over one connection all tables are of one moment.

    ``since`` leaves out rows that cannot have changed, of tables whose rows say so: facts, and what is only added to.

    Raises:
        StorageError: a value is not of its column's type.
    """
    if isinstance(ledger, Engine):
        with ledger.connect() as connection:
            yield from dump_rows(connection, table, since)
        return
    yield from _rows(ledger, *DUMPED[table], since)


def _rows(
    ledger: Connection, source: Table, names: tuple[str, ...], key_length: int, since: Since | None
) -> Iterator[tuple[Any, ...]]:
    columns = [source.c[name] for name in names]
    query = select(*columns).where(*_later(source, since)).order_by(*columns[:key_length])
    for row in ledger.execute(query):
        yield tuple(typed(source, names, row))


def count_earlier(ledger: Connection, table: str, since: Since) -> int:
    """The rows that ``dump_rows`` leaves out."""
    source, _, _ = DUMPED[table]
    count = select(func.count()).select_from(source)
    left_out = ledger.scalar(count) or 0
    return int(left_out) - int(ledger.scalar(count.where(*_later(source, since))) or 0)


def _later(source: Table, since: Since | None) -> list[ColumnElement[bool]]:
    if since is None:
        return []
    if source is t.facts:
        start = source.c.bucket_start_ns
        # The first condition is for the index.
        latest_ns = since.closed_through_ns - BUCKET_MAX_NANOS
        return [start > latest_ns, start + source.c.bucket_ns > since.closed_through_ns]
    if source in _ONLY_ADDED_TO:
        return [source.c.sequence > since.position]
    return []


def dump(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """All of it; for ledgers that fit in memory."""
    return {table: list(dump_rows(engine, table)) for table in DUMPED}
