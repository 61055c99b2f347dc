"""A snapshot of a ledger at its position: what folding on from there needs, and what comparing from there needs.

It is a ledger of the same schema, with fewer rows: no row that nothing folded after the position can read
or change. What the fold does with each table is in ``docs/billing-semantics.md``; each statement says which part.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

from billaged.aggregator.timeline import KEPT_NANOS
from billaged.intake.read_only import read_only_uri
from billaged.ledger.checked import chain_of, clock_of, only_row
from billaged.ledger.copying import SYNC_BYTES, sync_early
from billaged.ledger.dump import BUCKET_MAX_NANOS
from billaged.model.errors import StorageError
from billaged.model.time import INT64_MAX

# Called again and again while something takes its time; it may wait, and what it raises ends it.
Meanwhile = Callable[[], None]

# SQLite's own steps between two calls: some milliseconds.
_STEPS: Final = 50_000

# Of each VM the newest timeline, from the horizon on; never without the newest two instants.
_KEPT_INSTANTS: Final = """
INSERT INTO main.kept_instants
SELECT kept.* FROM (
    SELECT vm_id, max(timeline) AS timeline FROM ledger.kept_instants GROUP BY vm_id
) AS vm CROSS JOIN ledger.kept_instants AS kept ON kept.vm_id = vm.vm_id AND kept.timeline = vm.timeline
WHERE kept.time_ns >= :horizon_ns OR kept.time_ns >= coalesce((
    SELECT time_ns FROM ledger.kept_instants WHERE vm_id = vm.vm_id AND timeline = vm.timeline
    ORDER BY time_ns DESC LIMIT 1 OFFSET 1
), kept.time_ns)
"""
_NEWEST_SESSIONS: Final = "INSERT INTO main.sessions SELECT * FROM ledger.sessions WHERE newest = 1"
# Of each VM: its newest session's last sample, its highest ordinal, the first instant that is kept.
_VMS: Final = """
CREATE TABLE scratch.vms (vm_id TEXT PRIMARY KEY, last_ns, highest, kept_ns, from_ns) WITHOUT ROWID;
INSERT INTO scratch.vms
SELECT vm_id, last_ns,
    (SELECT max(ordinal) FROM ledger.sessions WHERE vm_id = newest.vm_id),
    (SELECT min(time_ns) FROM main.kept_instants WHERE vm_id = newest.vm_id),
    NULL
FROM main.sessions AS newest ORDER BY vm_id;
"""
# Kept instants speak of the sessions since the first of them, and of the one before it.
_VMS_FROM: Final = """
UPDATE scratch.vms SET from_ns = coalesce((
    SELECT max(start_ns) FROM ledger.sessions AS before
    WHERE before.vm_id = vms.vm_id AND before.start_ns < vms.kept_ns
), kept_ns) WHERE kept_ns IS NOT NULL
"""
# The highest ordinal, too: by it the sessions that were opened later are known.
_OLDER_SESSIONS: Final = """
INSERT INTO main.sessions
SELECT older.* FROM scratch.vms AS vm CROSS JOIN ledger.sessions AS older ON older.vm_id = vm.vm_id
WHERE older.newest <> 1 AND (older.ordinal = vm.highest OR older.start_ns >= vm.from_ns)
"""
# A gap can change while an instant at its end is kept, or is the newest.
_GAPS: Final = """
INSERT INTO main.gaps
SELECT gaps.* FROM scratch.vms AS vm CROSS JOIN ledger.gaps AS gaps ON gaps.vm_id = vm.vm_id
WHERE gaps.end_ns >= min(vm.last_ns, coalesce(vm.kept_ns, vm.last_ns))
"""
# Those without an end, and those that another one of the same key may still meet.
_SILENCES: Final = """
INSERT INTO main.silences
SELECT silences.* FROM ledger.silences AS silences LEFT JOIN scratch.vms AS vm ON vm.vm_id = silences.vm_id
WHERE silences.end_ns IS NULL OR vm.last_ns IS NULL OR silences.start_ns >= vm.last_ns
"""
# What is posted to a closed bucket is a correction.
_FACTS: Final = """
INSERT INTO main.facts
SELECT * FROM ledger.facts
WHERE bucket_start_ns > :closed_through_ns - :bucket_max_ns AND bucket_start_ns + bucket_ns > :closed_through_ns
"""
_WHOLE: Final = ("alembic_version", "checkpoint", "instances", "tallies")


class Snapshot(NamedTuple):
    """Where the ledger stood: its position, and the journal's chain there (empty before the first chained row)."""

    position: int
    chain: bytes


def take_snapshot(ledger: Path, target: Path, scratch: Path, meanwhile: Meanwhile) -> Snapshot:
    """Write a snapshot of a ledger, which a daemon may write to, into a new file; it is not synced.

    All of it is of one moment: ``ledger.db-wal`` grows meanwhile, by what the daemon commits. ``scratch`` is
    a file for the time of it.

    Raises:
        StorageError: the ledger cannot be read, or the snapshot cannot be written.
    """
    stopped: list[BaseException] = []
    try:
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with closing(sqlite3.connect(target.absolute().as_uri(), uri=True, isolation_level=None)) as connection:
                connection.set_progress_handler(_Steps(descriptor, meanwhile, stopped), _STEPS)
                return _take(connection, ledger, scratch)
        finally:
            os.close(descriptor)
    except (OSError, sqlite3.Error) as error:
        if stopped:
            raise stopped[0] from None
        raise StorageError(f"no snapshot of {ledger} can be taken: {error}.") from error


class _Steps:
    """Between SQLite's steps: what is written goes to the disk a little at a time, and others have their turn."""

    def __init__(self, descriptor: int, meanwhile: Meanwhile, stopped: list[BaseException]) -> None:
        """``stopped`` takes what was raised: SQLite lets nothing through."""
        self._descriptor = descriptor
        self._meanwhile = meanwhile
        self._stopped = stopped
        self._synced_bytes = 0

    def __call__(self) -> int:
        try:
            size = os.fstat(self._descriptor).st_size
            if size - self._synced_bytes >= SYNC_BYTES:
                sync_early(self._descriptor)
                self._synced_bytes = size
            self._meanwhile()
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            self._stopped.append(error)
            return 1
        return 0


def _take(connection: sqlite3.Connection, ledger: Path, scratch: Path) -> Snapshot:
    # A file that is not finished is thrown away, so it needs neither a log nor syncs of SQLite's.
    for pragma in ("journal_mode=OFF", "synchronous=OFF"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("ATTACH ? AS ledger", (read_only_uri(ledger),))
    connection.execute("ATTACH ? AS scratch", (scratch.absolute().as_uri(),))
    for pragma in ("journal_mode=OFF", "synchronous=OFF"):
        connection.execute(f"PRAGMA scratch.{pragma}")
    connection.execute("BEGIN")
    schema = connection.execute("SELECT type, sql FROM ledger.sqlite_schema WHERE sql IS NOT NULL").fetchall()
    row = only_row(connection.execute("SELECT position, clock, chain FROM ledger.checkpoint LIMIT 2").fetchall())
    if row is None:
        raise StorageError(f"no snapshot of {ledger} can be taken: nothing was folded into it yet.")
    position, clock, chain = row[0], clock_of(row[1]), chain_of(row[2])
    values: dict[str, Any] = {
        "horizon_ns": -INT64_MAX if clock.latest_ns is None else clock.latest_ns - KEPT_NANOS,
        "closed_through_ns": clock.closed_through_ns,
        "bucket_max_ns": BUCKET_MAX_NANOS,
    }
    for kind, sql in schema:
        if kind == "table":
            connection.execute(sql)
    for table in _WHOLE:
        connection.execute(f"INSERT INTO main.{table} SELECT * FROM ledger.{table}")
    for statement in (_KEPT_INSTANTS, _NEWEST_SESSIONS, *_VMS.split(";")[:-1], _VMS_FROM):
        connection.execute(statement, values)
    for statement in (_OLDER_SESSIONS, _GAPS, _SILENCES, _FACTS):
        connection.execute(statement, values)
    for kind, sql in schema:
        if kind != "table":
            connection.execute(sql)
    connection.execute("COMMIT")
    return Snapshot(position, chain)
