"""The ledger as reports read it: one consistent look, read-only, daemon running or not."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, FromClause, Row, Select, and_, false, func, or_, select, true
from sqlalchemy.exc import DBAPIError

from billaged.ledger import tables as t
from billaged.ledger.checked import (
    RESTORE_OR_FOLD,
    book_of,
    chain_of,
    checkpoint_row,
    clock_of,
    listed_vms,
    reason_of,
    rules_of,
    typed,
    typed_rows,
)
from billaged.ledger.database import open_for_reading
from billaged.ledger.dump import Since, count_earlier, dump_rows, proved_rows
from billaged.ledger.views import (
    Gap,
    Grouping,
    LedgerPosition,
    Outside,
    Part,
    ReportedGap,
    Session,
    Silence,
    Span,
    Subject,
)
from billaged.model.errors import StorageError
from billaged.model.quantity import MemoryTime, Usage
from billaged.model.records import COUNTER_FIELDS, FoldRules
from billaged.model.time import HOUR_NANOS, INT64_MAX

_LOW_BITS: Final = 32
_LOW_MASK: Final = 2**_LOW_BITS - 1
_SUMMED: Final = (*COUNTER_FIELDS, "memory_mib_seconds", "memory_rest_byte_nanos", "measured_ns", "samples")
# No bucket is longer: the setting allows no more.
_BUCKET_MAX_NANOS: Final = HOUR_NANOS
# Nobody said when these sessions ended.
_ENDED_UNSEEN: Final = ("missed_stop", "vanished")

_GROUPS: Final[dict[Grouping, tuple[str, ...]]] = {
    "vm": ("vm_id",),
    "session": ("vm_id", "ordinal"),
    "bucket": ("bucket_start_ns", "bucket_ns", "vm_id"),
}


class Anomaly(NamedTuple):
    """Something odd, as recorded; ``detail`` is JSON. ``ordinal`` is 0 where the VM had no session then.

    The customer is the session's; without a session that of the VM's first one, None where none came.
    """

    sequence: int
    item: int
    kind: str
    vm_id: str
    ordinal: int
    at_ns: int
    detail: str
    customer_id: str | None


@contextmanager
def reading(path: Path) -> Iterator[LedgerReader]:
    """Open a ledger for one consistent look; all that is read in it is of one moment.

    Raises:
        StorageError: there is no ledger, it is of another version, or it cannot be read.
    """
    engine = open_for_reading(path)
    try:
        with engine.connect() as connection:
            yield LedgerReader(connection)
    except DBAPIError as error:
        raise StorageError(f"{path} cannot be read: {reason_of(error)}.", RESTORE_OR_FOLD) from error
    finally:
        engine.dispose()


class LedgerReader:
    """Every answer is of the moment of the first."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        row = checkpoint_row(connection)
        # A ledger that no daemon has taken up yet is empty.
        self.position = LedgerPosition("", 0) if row is None else LedgerPosition(row.journal_id, row.position)
        # The journal's chain at the position; empty before the first chained row.
        self.chain = b"" if row is None else chain_of(row.chain)
        self.rules = FoldRules() if row is None else rules_of(row.rules) or FoldRules()
        # Whether it was folded by the rules of this version: those before kept no book of them.
        self.is_of_this_version = row is None or row.rules is None or bool(book_of(row.rules))
        self._clock = None if row is None else row.clock

    @property
    def closed_through_ns(self) -> int:
        """Buckets that end there or before are closed.

        Raises:
            StorageError: the ledger's clock is damaged, or of an earlier version.
        """
        return 0 if self._clock is None else clock_of(self._clock).closed_through_ns

    def dump_rows(self, table: str, since: Since | None = None) -> Iterator[tuple[Any, ...]]:
        """A table of the canonical dump (``dump.DUMPED``), or what of it can have changed since."""
        return dump_rows(self._connection, table, since)

    def proved_rows(self, table: str, since: Since | None = None) -> Iterator[tuple[Any, ...]]:
        """The same with what a proof compares (``dump.PROVED``)."""
        return proved_rows(self._connection, table, since)

    def count_earlier(self, table: str, since: Since) -> int:
        """How many rows ``dump_rows`` leaves out."""
        return count_earlier(self._connection, table, since)

    # --- sessions ----------------------------------------------------------------

    def knows(self, subject: Subject) -> bool:
        """Whether there is a session of this VM, or of this customer, or of both."""
        return self._connection.execute(_sessions(subject).limit(1)).first() is not None

    def newest_sessions(self, subject: Subject, *, running: bool) -> list[Session]:
        """The newest session of each VM, by VM; with ``running`` only those that run."""
        query = _sessions(subject).where(t.sessions.c.newest == 1).order_by(t.sessions.c.vm_id)
        if running:
            query = query.where(t.sessions.c.end_ns.is_(None))
        return list(map(_session, self._connection.execute(query)))

    def sessions(self, subject: Subject) -> list[Session]:
        """All sessions, by VM, oldest first."""
        query = _sessions(subject).order_by(t.sessions.c.vm_id, t.sessions.c.ordinal)
        return list(map(_session, self._connection.execute(query)))

    # --- usage -------------------------------------------------------------------

    def buckets_cut_by(self, subject: Subject, at_ns: int) -> Span | None:
        """The span of the buckets with usage that an instant lies inside of; None where there is none."""
        spans = []
        for table in (t.facts, t.corrections):
            start, end = table.c.bucket_start_ns, table.c.bucket_start_ns + table.c.bucket_ns
            query = select(func.min(start), func.max(end)).where(
                *_of(subject, table), start < at_ns, start > max(at_ns - _BUCKET_MAX_NANOS, -INT64_MAX), end > at_ns
            )
            spans += [Span(*row) for row in self._connection.execute(query) if row[0] is not None]
        if not spans:
            return None
        return Span(min(span.from_ns for span in spans), max(span.to_ns for span in spans))

    def bucket_lengths(self, subject: Subject, span: Span) -> set[int]:
        """The lengths of the buckets that begin in the span, nanoseconds."""
        lengths: set[int] = set()
        for table in (t.facts, t.corrections):
            query = select(table.c.bucket_ns).distinct().where(*_of(subject, table), *_begins_in(table, span))
            lengths |= set(self._connection.scalars(query))
        return lengths

    def usage_parts(self, subject: Subject, span: Span, by: Grouping) -> Iterator[Iterator[Part]]:
        """Exact sums of facts, then of corrections, in buckets that begin in the span.

        Two iterators, each in the order of the grouping.
        """
        for table in (t.facts, t.corrections):
            yield self._parts(table, subject, span, by)

    def _parts(self, table: FromClause, subject: Subject, span: Span, by: Grouping) -> Iterator[Part]:
        keys = [table.c[name] for name in _GROUPS[by]]
        query = (
            select(*keys, func.max(table.c.memory_peak_bytes), *_halves(table))
            .where(*_of(subject, table), *_begins_in(table, span))
            .group_by(*keys)
            .order_by(*keys)
        )
        for row in self._connection.execute(query):
            key = dict(zip(_GROUPS[by], row, strict=False))
            if not all(isinstance(value, int) for value in row[len(keys) :]):
                raise StorageError(f"the ledger's {table} of {key} are damaged.", RESTORE_OR_FOLD)
            usage = _usage_of_halves(row[len(keys)], row[len(keys) + 1 :])
            yield Part(key["vm_id"], key.get("ordinal", 0), key.get("bucket_start_ns", 0), usage)

    # --- gaps --------------------------------------------------------------------

    def gaps(self, subject: Subject, span: Span) -> list[Gap]:
        """Closed gaps that overlap the span, by start. None is cut to it."""
        table = t.gaps
        query = (
            select(table)
            .where(*_of(subject, table), table.c.end_ns > span.from_ns, table.c.start_ns < span.to_ns)
            .order_by(table.c.start_ns, table.c.vm_id)
        )
        return [
            Gap(
                row.vm_id,
                row.ordinal,
                row.start_ns,
                row.end_ns,
                row.kind,
                row.customer_id,
                Usage(**{name: row._mapping[name] for name in COUNTER_FIELDS}, gap_ns=row.end_ns - row.start_ns),
                row.sequence,
            )
            for row in typed_rows(table, table.c.keys(), self._connection.execute(query).all())
        ]

    def reported_gaps(self, subject: Subject, span: Span) -> list[ReportedGap]:
        """Reported gaps that overlap the span or touch it, by time; each with the customer of the session it met."""
        table, session = t.reported_gaps, t.sessions
        met = (
            select(session.c.customer_id)
            .where(
                session.c.vm_id == table.c.vm_id,
                session.c.start_ns <= table.c.resume_ns,
                or_(session.c.end_ns.is_(None), session.c.end_ns >= table.c.last_sent_ns),
            )
            .order_by(session.c.ordinal.desc())
            .limit(1)
            .scalar_subquery()
        )
        query = (
            select(table.c.vm_id, table.c.last_sent_ns, table.c.resume_ns, table.c.sequence, met.label("customer_id"))
            .where(table.c.resume_ns >= span.from_ns, table.c.last_sent_ns < span.to_ns)
            .order_by(table.c.last_sent_ns, table.c.sequence)
        )
        query = query.where(*_named(subject._replace(customer_id=None), table))
        rows = self._connection.execute(query).all()
        typed_rows(table, ReportedGap._fields[:-1], [row[:-1] for row in rows])
        gaps = [ReportedGap(*row) for row in rows]
        return [gap for gap in gaps if subject.customer_id in (None, gap.customer_id)]

    def outside(self, subject: Subject, span: Span) -> list[Outside]:
        """What lies between a session that ended unseen and the VM's next one, where it overlaps the span."""
        ended, other = t.sessions, t.sessions.alias("other")
        following = (
            select(func.min(other.c.start_ns))
            .where(
                other.c.vm_id == ended.c.vm_id, other.c.ordinal != ended.c.ordinal, other.c.start_ns >= ended.c.end_ns
            )
            .scalar_subquery()
        )
        names = ("vm_id", "ordinal", "customer_id", "end_kind", "end_ns")
        query = select(*(ended.c[name] for name in names), following).where(
            *_named(subject, ended), ended.c.end_kind.in_(_ENDED_UNSEEN), ended.c.end_ns < span.to_ns
        )
        rows: Sequence[Any] = self._connection.execute(query).all()
        typed_rows(ended, names, [row[:-1] for row in rows])
        found = [Outside(*row) for row in rows]
        return [each for each in found if each.end_ns is None or each.end_ns > max(each.start_ns, span.from_ns)]

    # --- silences ----------------------------------------------------------------

    def silences(self, subject: Subject, span: Span) -> list[Silence]:
        """Those of the subject's VMs, and of all VMs, that overlap the span, by VM and start."""
        table = t.silences
        query = (
            select(*(table.c[name] for name in Silence._fields))
            .where(
                or_(and_(true(), *_vms_of(subject, table)), table.c.vm_id == ""),
                table.c.start_ns < span.to_ns,
                or_(table.c.end_ns.is_(None), table.c.end_ns > span.from_ns),
            )
            .order_by(table.c.vm_id, table.c.start_ns, table.c.reason)
        )
        rows = typed_rows(table, Silence._fields, self._connection.execute(query).all())
        return [Silence(*row) for row in rows]

    def instances_of(self, vm_ids: Collection[str]) -> dict[str, list[str]]:
        """The instances that list each of these VMs, by id; VMs that none lists are left out."""
        found: dict[str, list[str]] = {}
        if not vm_ids:
            return found
        names = ("instance_id", "active_vms")
        query = select(*(t.instances.c[name] for name in names)).order_by(t.instances.c.instance_id)
        wanted = set(vm_ids)
        for row in typed_rows(t.instances, names, self._connection.execute(query).all()):
            for vm_id in wanted.intersection(listed_vms(*row)):
                found.setdefault(vm_id, []).append(row[0])
        return found

    # --- anomalies ---------------------------------------------------------------

    def anomalies(self, subject: Subject, span: Span) -> Iterator[Anomaly]:
        """Those about a time in the span, by that time. A customer's are those of its sessions."""
        table, session = t.anomalies, t.sessions
        names = Anomaly._fields[:-1]
        its_session = and_(
            session.c.vm_id == table.c.vm_id,
            or_(session.c.ordinal == table.c.ordinal, and_(table.c.ordinal == 0, session.c.ordinal == 1)),
        )
        query = (
            select(*(table.c[name] for name in names), session.c.customer_id)
            .join_from(table, session, its_session, isouter=True)
            .where(
                *_named(subject._replace(customer_id=None), table),
                *_named(subject._replace(vm_id=None), session),
                table.c.at_ns >= span.from_ns,
                table.c.at_ns < span.to_ns,
            )
            .order_by(table.c.at_ns, table.c.sequence, table.c.item, table.c.kind)
        )
        for row in self._connection.execute(query):
            typed(table, names, row[:-1])
            values: dict[str, Any] = {**row._mapping}
            yield Anomaly(**values)


def _sessions(subject: Subject) -> Select[Any]:
    return select(*(t.sessions.c[name] for name in Session._fields)).where(*_named(subject, t.sessions))


def _session(row: Row[Any]) -> Session:
    typed(t.sessions, row._fields, row)
    values: dict[str, Any] = {**row._mapping, "explicit": bool(row.explicit)}
    return Session(**values)


def _named(subject: Subject, table: FromClause) -> list[ColumnElement[bool]]:
    named = {name: value for name, value in subject._asdict().items() if value is not None}
    return [table.c[name] == value if _is_utf8(value) else false() for name, value in named.items()]


def _is_utf8(text: str) -> bool:
    """What came from a command line may be no text at all; no row has that."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _of(subject: Subject, table: FromClause) -> list[ColumnElement[bool]]:
    """The subject's rows of a table that is indexed by VM: a customer's are found through its VMs."""
    conditions = _named(subject, table)
    if subject.vm_id is None:
        conditions += _vms_of(subject, table)
    return conditions


def _vms_of(subject: Subject, table: FromClause) -> list[ColumnElement[bool]]:
    """The rows of the subject's VMs, whosever they are."""
    conditions = _named(subject._replace(customer_id=None), table)
    if subject.vm_id is None and subject.customer_id is not None:
        sessions = _named(subject, t.sessions)
        conditions.append(table.c.vm_id.in_(select(t.sessions.c.vm_id).where(*sessions)))
    return conditions


def _begins_in(table: FromClause, span: Span) -> list[ColumnElement[bool]]:
    return [and_(table.c.bucket_start_ns >= span.from_ns, table.c.bucket_start_ns < span.to_ns)]


def _halves(table: FromClause) -> list[ColumnElement[Any]]:
    """Sums that cannot overflow: of the upper bits and of the lower ones (SQLite's SUM refuses past 64 bits)."""
    sums: list[ColumnElement[Any]] = []
    for name in _SUMMED:
        column = table.c[name]
        sums.append(func.sum(column.bitwise_rshift(_LOW_BITS)))
        sums.append(func.sum(column.bitwise_and(_LOW_MASK)))
    return sums


def _usage_of_halves(memory_peak_bytes: int, halves: Sequence[int]) -> Usage:
    sums = [(int(high) << _LOW_BITS) + int(low) for high, low in zip(halves[::2], halves[1::2], strict=True)]
    values = dict(zip(_SUMMED, sums, strict=True))
    memory = MemoryTime(values.pop("memory_mib_seconds"), values.pop("memory_rest_byte_nanos"))
    return Usage(**values, memory_byte_nanos=memory.byte_nanos, memory_peak_bytes=memory_peak_bytes)
