"""The ledger as a checker reads it: whole tables as they are, in one read transaction, a little at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import Error as SqliteError
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, Table, and_, bindparam, false, func, select
from sqlalchemy.exc import DBAPIError

from billaged.aggregator import changes as c
from billaged.ledger import tables as t
from billaged.ledger.audit_chunk import Chunk, Rows, chunk_of
from billaged.ledger.checked import RESTORE_OR_FOLD, checkpoint_row, reason_of
from billaged.ledger.database import open_for_reading
from billaged.ledger.views import LedgerPosition, Subject
from billaged.model.errors import StorageError

_CHUNK_ROWS: Final = 8_192

BUCKET_KEY: Final = c.FACT_COLUMNS[:4]
# What a fact or a correction adds to its bucket.
BUCKET_VALUES: Final = c.FACT_COLUMNS[5:]
SESSION_COLUMNS: Final = tuple(name for name in c.SESSION_COLUMNS if name != "state")
DEAD_LETTER_COLUMNS: Final = ("sequence", "kind", "reason", "received_ns", "caller")
# The tables that a check goes through, with the columns that it looks at.
AUDITED: Final = {
    "sessions": SESSION_COLUMNS,
    "facts": c.FACT_COLUMNS,
    "corrections": c.CORRECTION_COLUMNS,
    "gaps": c.GAP_COLUMNS,
    "anomalies": c.ANOMALY_COLUMNS,
    "dead_letters": DEAD_LETTER_COLUMNS,
    "instances": c.INSTANCE_COLUMNS,
    "kept_instants": c.KEPT_INSTANT_COLUMNS,
    "silences": c.SILENCE_COLUMNS,
    "reported_gaps": c.REPORTED_GAP_COLUMNS,
    "tallies": ("name", "value"),
}


class VmRange(NamedTuple):
    """VM ids after one (None: from the first) through another (None: to the last), in the ledger's order."""

    after: str | None = None
    through: str | None = None


ALL_VMS: Final = VmRange()


@contextmanager
def auditing(path: Path) -> Iterator[AuditReader]:
    """Open a ledger for one consistent look, as ``reader.reading`` does.

    Raises:
        StorageError: there is no ledger, it is of another version, or it cannot be read.
    """
    engine = open_for_reading(path)
    try:
        with engine.connect() as connection:
            yield AuditReader(connection)
    except (DBAPIError, SqliteError) as error:
        raise StorageError(f"{path} cannot be read: {reason_of(error)}.", RESTORE_OR_FOLD) from error
    finally:
        engine.dispose()


class AuditReader:
    """Every answer is of the moment of the first.

    A subject's rows are those of its VM, or of each VM that the customer ever had, whoever's they are.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        row = checkpoint_row(connection)
        self.position = LedgerPosition("", 0) if row is None else LedgerPosition(row.journal_id, row.position)
        # The lengths of all ticks, nanoseconds.
        self.passed_ns = 0 if row is None else row.passed_ns

    def structure_problems(self) -> list[str]:
        """What SQLite finds wrong with the file, its indexes too, and what acts in it by itself; reads all of it."""
        found = [str(row[0]) for row in self._connection.exec_driver_sql("PRAGMA integrity_check(100)")]
        # Either changes what is written or read, and no row says so.
        foreign = self._connection.exec_driver_sql(
            "SELECT type, name FROM sqlite_schema WHERE type IN ('trigger', 'view') ORDER BY name LIMIT 100"
        )
        return [*([] if found == ["ok"] else found), *(f"it has a {kind}, {name!r}" for kind, name in foreign)]

    def count(self, name: str, subject: Subject) -> int:
        """How many rows a table has."""
        table = t.metadata.tables[name]
        query = select(func.count()).select_from(table).where(*_its(subject, table))
        return int(self._connection.execute(query).scalar_one())

    def rows(self, name: str, subject: Subject, vms: VmRange = ALL_VMS) -> Iterator[Chunk]:
        """A table's rows as they lie in it (which is the fastest), as ``AUDITED``."""
        table, names = t.metadata.tables[name], AUDITED[name]
        query = select(*(table.c[each] for each in names))
        return self._chunks(query.where(*_its(subject, table), *_within(vms, table, by_index=False)), table, names)

    def sessions(self, subject: Subject) -> Iterator[Chunk]:
        """By VM, each VM's in the order of time."""
        table = t.sessions.c
        query = select(*(table[name] for name in SESSION_COLUMNS)).where(*_its(subject, t.sessions))
        until = func.coalesce(table.end_ns, table.last_ns)
        query = query.order_by(table.vm_id, table.start_ns, until, table.ordinal)
        return self._chunks(query, t.sessions, SESSION_COLUMNS)

    def gaps(self, subject: Subject) -> Iterator[Chunk]:
        """By VM, each session's in the order of time."""
        table = t.gaps.c
        query = select(*(table[name] for name in c.GAP_COLUMNS)).where(*_its(subject, t.gaps))
        return self._chunks(query.order_by(table.vm_id, table.ordinal, table.start_ns), t.gaps, c.GAP_COLUMNS)

    def corrections(self, subject: Subject, vms: VmRange) -> Iterator[Chunk]:
        """A bucket's together, each followed by the values of the bucket's fact (None where there is none)."""
        one, fact = t.corrections, t.facts
        query = (
            select(*(one.c[name] for name in c.CORRECTION_COLUMNS), *(fact.c[name] for name in BUCKET_VALUES))
            .join_from(one, fact, and_(*(one.c[name] == fact.c[name] for name in BUCKET_KEY)), isouter=True)
            .where(*_its(subject, one), *_within(vms, one, by_index=True))
            .order_by(one.c.vm_id, one.c.bucket_start_ns, one.c.bucket_ns, one.c.ordinal, one.c.sequence)
        )
        return self._chunks(query, one, c.CORRECTION_COLUMNS)

    def silences(self, subject: Subject) -> Iterator[Chunk]:
        """Each followed by its VM's newest session: its kind of end, and its newest sample (None: there is none)."""
        one, session = t.silences, t.sessions.c
        newest = [
            select(column)
            .where(session.vm_id == one.c.vm_id, session.newest == 1)
            .order_by(session.start_ns.desc(), session.ordinal.desc())
            .limit(1)
            .scalar_subquery()
            for column in (session.end_kind, session.last_ns)
        ]
        query = select(*(one.c[name] for name in c.SILENCE_COLUMNS), *newest).where(*_its(subject, one))
        return self._chunks(query, one, c.SILENCE_COLUMNS)

    def bucket_rows(self, name: str, vm_id: str, ordinal: int, from_ns: int, to_ns: int) -> Rows:
        """A session's facts or corrections whose buckets begin in a span, as ``FACT_COLUMNS``; without damaged ones."""
        about = {"vm": vm_id, "nth": ordinal, "begin": from_ns, "end": to_ns}
        rows = [tuple(row) for row in self._connection.execute(_BUCKET_ROWS[name], about)]
        return chunk_of(t.metadata.tables[name], c.FACT_COLUMNS, rows).rows if rows else ()

    def _chunks(self, query: Select[Any], table: Table, names: tuple[str, ...]) -> Iterator[Chunk]:
        # The driver's own rows: nothing in between.
        result = self._connection.execute(query)
        cursor: Any = result.cursor
        while rows := cursor.fetchmany(_CHUNK_ROWS):
            yield chunk_of(table, names, rows)
        result.close()


def _bucket_rows(table: Table) -> Select[Any]:
    return select(*(table.c[each] for each in c.FACT_COLUMNS)).where(
        table.c.vm_id == bindparam("vm"),
        table.c.ordinal == bindparam("nth"),
        table.c.bucket_start_ns >= bindparam("begin"),
        table.c.bucket_start_ns < bindparam("end"),
    )


# Made once: many are asked for.
_BUCKET_ROWS: Final = {table.name: _bucket_rows(table) for table in (t.facts, t.corrections)}


def _its(subject: Subject, table: Table) -> list[ColumnElement[bool]]:
    if "vm_id" not in table.c:
        return []
    try:
        for value in subject:
            (value or "").encode()
    except UnicodeEncodeError:
        # A command line may hold what is no text; no row has that.
        return [false()]
    conditions: list[ColumnElement[bool]] = []
    if subject.vm_id is not None:
        conditions.append(table.c.vm_id == subject.vm_id)
    if subject.customer_id is not None:
        its = select(t.sessions.c.vm_id).where(t.sessions.c.customer_id == subject.customer_id)
        conditions.append(table.c.vm_id.in_(its))
    return conditions


def _within(vms: VmRange, table: Table, *, by_index: bool) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if vms == ALL_VMS:
        return conditions
    # An index on the VM would lead all over a large file; a function of the column has none.
    vm_id: ColumnElement[Any] = table.c.vm_id if by_index else func.coalesce(table.c.vm_id, "")
    if vms.after is not None:
        conditions.append(vm_id > vms.after)
    if vms.through is not None:
        conditions.append(vm_id <= vms.through)
    return conditions
