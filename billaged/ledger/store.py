"""The ledger as the aggregator writes it: one transaction a flush, fenced by the checkpoint."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from sqlalchemy import Connection, Engine, Select, bindparam, delete, func, insert, select, tuple_, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from billaged.aggregator import changes as c
from billaged.aggregator.changes import Checkpoint, LedgerChanges, Row
from billaged.aggregator.persistence import of_another_version
from billaged.aggregator.timeline import KEPT_MAX
from billaged.ledger import tables as t
from billaged.ledger.bulk import replacing, write_rows
from billaged.ledger.checked import checkpoint_of, checkpoint_row, listed_vms, readable, typed_rows
from billaged.ledger.forgetting import Forgetting
from billaged.model.errors import DurabilityLost, StorageError
from billaged.model.quantity import REST_PER_MIB_SECOND
from billaged.model.records import COUNTER_FIELDS, FoldRules
from billaged.wire.codec import rules_to_json

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
# An end is told once; who opened it is told first.
_END_SILENCE: Final = (
    "ON CONFLICT (vm_id, start_ns, reason) DO UPDATE SET end_ns = COALESCE(silences.end_ns, excluded.end_ns)"
)
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
        self._forgetting = Forgetting()
        # A ledger in memory is one connection, and one transaction at a time; files have one for each thread.
        in_memory = isinstance(engine.pool, StaticPool)
        self._alone: AbstractContextManager[Any] = threading.Lock() if in_memory else nullcontext()
        with readable(), engine.begin() as connection:
            row = checkpoint_row(connection)
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
            self._checkpoint = checkpoint_of(row)
            if self._checkpoint.rules is not None and not self._checkpoint.book:
                # Before there were timelines, a ledger kept the rules in force only.
                raise of_another_version()
            self._epoch = row.epoch + 1
            connection.execute(update(t.checkpoint).values(epoch=self._epoch))

    def checkpoint(self) -> Checkpoint:
        return self._checkpoint

    def commit(self, changes: LedgerChanges) -> None:
        try:
            with self._alone, self._engine.begin() as connection:
                self._advance(connection, changes)
                _write(connection, changes)
                self._forgetting.run(connection, changes.checkpoint.clock)
        except DBAPIError as error:
            raise DurabilityLost(
                f"the ledger cannot be committed: {error.orig}.", "See the disk and restart."
            ) from error
        self._checkpoint = changes.checkpoint

    def _advance(self, connection: Connection, changes: LedgerChanges) -> None:
        """Move the checkpoint first: whoever cannot is not the ledger's writer any more."""
        before, after = self._checkpoint, changes.checkpoint
        values = _columns_of(after)
        # A book may have thousands of customers: it is not written again each second.
        if (after.rules, after.book) != (before.rules, before.book):
            values["rules"] = None if after.rules is None else _rules_text(after.rules, after.book)
        moved = connection.execute(
            update(t.checkpoint)
            .where(t.checkpoint.c.epoch == self._epoch, t.checkpoint.c.position == changes.before)
            .values(values)
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

    def sessions(self, ordinals: Mapping[str, Collection[int]]) -> Sequence[Row]:
        """These sessions, by VM and ordinal, as ``SESSION_COLUMNS``; those that are there.

        Raises:
            StorageError: a row is damaged, or cannot be read.
        """
        keys = [(vm_id, ordinal) for vm_id, numbers in ordinals.items() for ordinal in sorted(numbers)]
        rows: list[Any] = []
        with readable(), self._alone, self._engine.connect() as connection:
            for start in range(0, len(keys), _ASK_VMS):
                wanted = tuple_(t.sessions.c.vm_id, t.sessions.c.ordinal).in_(keys[start : start + _ASK_VMS])
                rows += connection.execute(_session_rows().where(wanted)).all()
        return [tuple(row) for row in typed_rows(t.sessions, c.SESSION_COLUMNS, rows)]

    def kept_instants(self, vm_ids: Collection[str]) -> Sequence[Row]:
        """Of each of these VMs the newest 4,096 of its newest timeline, as ``KEPT_INSTANT_COLUMNS``, by time.

        Raises:
            StorageError: a row is damaged, or cannot be read.
        """
        kept = t.kept_instants.c
        columns = [kept[name] for name in c.KEPT_INSTANT_COLUMNS]
        newest = select(func.max(kept.timeline)).where(kept.vm_id == bindparam("vm")).scalar_subquery()
        query = select(*columns).where(kept.vm_id == bindparam("vm"), kept.timeline == newest)
        query = query.order_by(kept.time_ns.desc()).limit(KEPT_MAX)
        rows: list[Any] = []
        with readable(), self._alone, self._engine.connect() as connection:
            for vm_id in vm_ids:
                rows += reversed(connection.execute(query, {"vm": vm_id}).all())
        return [tuple(row) for row in typed_rows(t.kept_instants, c.KEPT_INSTANT_COLUMNS, rows)]

    def vms_with_kept_instants(self, vm_ids: Collection[str]) -> Collection[str]:
        """Those of these VMs of which there are kept instants.

        Raises:
            StorageError: a row cannot be read.
        """
        wanted = list(vm_ids)
        found: set[str] = set()
        with readable(), self._alone, self._engine.connect() as connection:
            for start in range(0, len(wanted), _ASK_VMS):
                among = t.kept_instants.c.vm_id.in_(wanted[start : start + _ASK_VMS])
                found.update(connection.scalars(select(t.kept_instants.c.vm_id).where(among).distinct()))
        return found

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

    def instances(self) -> Sequence[Row]:
        """
        Raises:
            StorageError: a row is damaged, or cannot be read.
        """
        query = select(*(t.instances.c[name] for name in c.INSTANCE_COLUMNS))
        with readable(), self._engine.connect() as connection:
            rows = typed_rows(t.instances, c.INSTANCE_COLUMNS, connection.execute(query).all())
        return [(row[0], row[1], listed_vms(row[0], row[2]), *row[3:]) for row in rows]

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
    write_rows(connection, t.silences, c.SILENCE_COLUMNS, changes.silences, _END_SILENCE)
    if changes.kept_no_more:
        gone = delete(t.kept_instants).where(
            t.kept_instants.c.vm_id == bindparam("vm"),
            t.kept_instants.c.timeline == bindparam("nth"),
            t.kept_instants.c.time_ns == bindparam("time"),
        )
        connection.execute(gone, [dict(zip(("vm", "nth", "time"), key, strict=True)) for key in changes.kept_no_more])
    replaced = replacing(t.kept_instants, c.KEPT_INSTANT_COLUMNS)
    write_rows(connection, t.kept_instants, c.KEPT_INSTANT_COLUMNS, changes.kept_instants, replaced)
    write_rows(connection, t.reported_gaps, c.REPORTED_GAP_COLUMNS, changes.reported_gaps)
    tallies = [(name, value) for name, value in sorted(changes.tallies.items()) if value]
    write_rows(connection, t.tallies, ("name", "value"), tallies, _ADD_TALLY)


def _columns_of(checkpoint: Checkpoint) -> dict[str, object]:
    """All but the rules."""
    return {
        "position": checkpoint.position,
        "window_number": checkpoint.window_number,
        "window_start_ns": checkpoint.window_start_ns,
        "clock": json.dumps(checkpoint.clock._asdict()),
        "chain": checkpoint.chain or None,
        "passed_ns": checkpoint.passed_ns,
    }


def _rules_text(rules: FoldRules, book: Sequence[FoldRules]) -> str:
    """All of them, and the place of those in force."""
    every = list(book) or [rules]
    return json.dumps({"now": every.index(rules), "all": [rules_to_json(each) for each in every]})
