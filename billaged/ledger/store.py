"""The ledger as the aggregator writes it: one transaction a flush, fenced by the checkpoint."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from sqlalchemy import Connection, Engine, Select, bindparam, delete, insert, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from billaged.aggregator import changes as c
from billaged.aggregator.changes import Checkpoint, LedgerChanges, Row
from billaged.ledger import tables as t
from billaged.ledger.bulk import replacing, write_rows
from billaged.ledger.checked import checkpoint_of, readable, typed_rows
from billaged.model.errors import DurabilityLost, StorageError
from billaged.model.quantity import REST_PER_MIB_SECOND
from billaged.model.records import COUNTER_FIELDS

_PART: Final = 0
_ASK_VMS: Final = 500
_LOAD_ROWS: Final = 10_000

_SUMMED: Final = ("measured_ns", "samples", *COUNTER_FIELDS)
# Rests are never negative, so whole MiB-seconds carry over the same way on every database.
_ADDING: Final = ", ".join(
    [
        *(f"{name} = facts.{name} + excluded.{name}" for name in _SUMMED),
        "memory_mib_seconds = facts.memory_mib_seconds + excluded.memory_mib_seconds"
        f" + (facts.memory_rest_byte_nanos + excluded.memory_rest_byte_nanos) / {REST_PER_MIB_SECOND}",
        "memory_rest_byte_nanos = (facts.memory_rest_byte_nanos + excluded.memory_rest_byte_nanos)"
        f" - (facts.memory_rest_byte_nanos + excluded.memory_rest_byte_nanos) / {REST_PER_MIB_SECOND}"
        f" * {REST_PER_MIB_SECOND}",
        "memory_peak_bytes = CASE WHEN excluded.memory_peak_bytes > facts.memory_peak_bytes"
        " THEN excluded.memory_peak_bytes ELSE facts.memory_peak_bytes END",
    ]
)
_ADD_FACT: Final = f"ON CONFLICT (bucket_start_ns, bucket_ns, vm_id, ordinal) DO UPDATE SET {_ADDING}"
_ADD_TALLY: Final = "ON CONFLICT (name) DO UPDATE SET value = tallies.value + excluded.value"


class LedgerStore:
    """One writer's hold on a ledger. Satisfies ``aggregator.changes.LedgerWriter``.

    Taking it up raises the epoch: whoever held it before is fenced off at its next commit.
    """

    def __init__(self, engine: Engine, journal_id: str) -> None:
        """
        Raises:
            StorageError: the ledger belongs to another journal, or is damaged.
        """
        self._engine = engine
        # A ledger in memory is one connection, and one transaction at a time; files have one for each thread.
        in_memory = isinstance(engine.pool, StaticPool)
        self._alone: AbstractContextManager[Any] = threading.Lock() if in_memory else nullcontext()
        with readable(), engine.begin() as connection:
            row = connection.execute(select(t.checkpoint)).one_or_none()
            if row is None:
                self._epoch = 1
                self._checkpoint = Checkpoint()
                values = {"part": _PART, "journal_id": journal_id, "epoch": 1, **_columns_of(self._checkpoint)}
                connection.execute(insert(t.checkpoint).values(values))
                return
            if row.journal_id != journal_id:
                raise StorageError(
                    f"the ledger was folded from journal {row.journal_id}, but the journal beside it is {journal_id}.",
                    "Put back the journal.db that belongs to it, or move ledger.db away to fold this journal anew.",
                )
            self._epoch = row.epoch + 1
            self._checkpoint = checkpoint_of(row)
            connection.execute(update(t.checkpoint).values(epoch=self._epoch))

    def checkpoint(self) -> Checkpoint:
        return self._checkpoint

    def commit(self, changes: LedgerChanges) -> None:
        try:
            with self._alone, self._engine.begin() as connection:
                self._advance(connection, changes)
                _write(connection, changes)
        except DBAPIError as error:
            raise DurabilityLost(
                f"the ledger cannot be committed: {error.orig}.", "See the disk and restart."
            ) from error
        self._checkpoint = changes.checkpoint

    def _advance(self, connection: Connection, changes: LedgerChanges) -> None:
        """Move the checkpoint first: whoever cannot is not the ledger's writer any more."""
        moved = connection.execute(
            update(t.checkpoint)
            .where(t.checkpoint.c.epoch == self._epoch, t.checkpoint.c.position == changes.before)
            .values(_columns_of(changes.checkpoint))
        )
        if moved.rowcount != 1:
            raise StorageError(
                "another daemon has taken over this ledger.", "Run one daemon on a data directory; this one stops."
            )

    def newest_sessions(self, vm_ids: Collection[str]) -> Sequence[Row]:
        """The newest session of each VM that has one, as ``SESSION_COLUMNS``. Any thread may ask.

        Raises:
            StorageError: a row is damaged, or cannot be read.
        """
        wanted = list(vm_ids)
        rows: list[Any] = []
        with readable(), self._alone, self._engine.connect() as connection:
            for start in range(0, len(wanted), _ASK_VMS):
                query = _session_rows().where(t.sessions.c.newest == 1)
                query = query.where(t.sessions.c.vm_id.in_(wanted[start : start + _ASK_VMS]))
                rows += connection.execute(query).all()
        return [tuple(row) for row in typed_rows(t.sessions, c.SESSION_COLUMNS, rows)]

    def running_sessions(self) -> Iterable[Sequence[Row]]:
        """
        Raises:
            StorageError: a row is damaged, or cannot be read.
        """
        # The driver's own rows: nothing in between, a fleet is loaded in one go.
        names = ", ".join(c.SESSION_COLUMNS)
        query = f"SELECT {names} FROM sessions WHERE end_ns IS NULL"
        with readable(), self._engine.connect() as connection:
            cursor: Any = connection.exec_driver_sql(query).cursor
            while rows := cursor.fetchmany(_LOAD_ROWS):
                yield typed_rows(t.sessions, c.SESSION_COLUMNS, rows)

    def close(self) -> None:
        self._engine.dispose()


def _session_rows() -> Select[Any]:
    return select(*(t.sessions.c[name] for name in c.SESSION_COLUMNS))


def _write(connection: Connection, changes: LedgerChanges) -> None:
    write_rows(connection, t.sessions, c.SESSION_COLUMNS, changes.sessions, replacing(t.sessions, c.SESSION_COLUMNS))
    for facts in changes.facts:
        write_rows(connection, t.facts, c.FACT_COLUMNS, facts, _ADD_FACT)
    write_rows(connection, t.corrections, c.CORRECTION_COLUMNS, changes.corrections)
    if changes.gaps_taken_back:
        taken_back = delete(t.gaps).where(
            t.gaps.c.vm_id == bindparam("vm"),
            t.gaps.c.ordinal == bindparam("nth"),
            t.gaps.c.start_ns == bindparam("start"),
        )
        keys = [dict(zip(("vm", "nth", "start"), key, strict=True)) for key in changes.gaps_taken_back]
        connection.execute(taken_back, keys)
    write_rows(connection, t.gaps, c.GAP_COLUMNS, changes.gaps, replacing(t.gaps, c.GAP_COLUMNS))
    write_rows(connection, t.anomalies, c.ANOMALY_COLUMNS, changes.anomalies)
    write_rows(connection, t.dead_letters, c.DEAD_LETTER_COLUMNS, changes.dead_letters)
    write_rows(
        connection, t.instances, c.INSTANCE_COLUMNS, changes.instances, replacing(t.instances, c.INSTANCE_COLUMNS)
    )
    write_rows(connection, t.reported_gaps, c.REPORTED_GAP_COLUMNS, changes.reported_gaps)
    tallies = [(name, value) for name, value in sorted(changes.tallies.items()) if value]
    write_rows(connection, t.tallies, ("name", "value"), tallies, _ADD_TALLY)


def _columns_of(checkpoint: Checkpoint) -> dict[str, object]:
    return {
        "position": checkpoint.position,
        "window_number": checkpoint.window_number,
        "window_start_ns": checkpoint.window_start_ns,
        "rules": None if checkpoint.rules is None else json.dumps(checkpoint.rules._asdict()),
        "clock": json.dumps(checkpoint.clock._asdict()),
    }
