"""After a run: the journal against what was accepted, the ledger against the auditor's bill of that journal."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from auditor.biller import Biller
from auditor.convert import to_event
from auditor.invariants import AuditError
from daemon_process import ledger_of

from billaged.intake.journal import JournalRow, entry_of
from billaged.model.records import Kind
from fuzz.sender import Accepted, digest

METHODS = {
    Kind.METRICS: "SendMetricsBatch",
    Kind.HEARTBEAT: "SendHeartbeat",
    Kind.STARTED: "NotifyVmStarted",
    Kind.STOPPED: "NotifyVmStopped",
    Kind.POSSIBLE_GAP: "NotifyPossibleGap",
}
SHOWN = 10


def journal_rows(data_dir: Path) -> Iterator[JournalRow]:
    """All rows in order, a few at a time in memory."""
    with closing(sqlite3.connect(data_dir / "journal.db")) as connection:
        query = "SELECT sequence, kind, received_ns, caller, payload FROM journal ORDER BY sequence"
        for row in connection.execute(query):
            yield JournalRow(*row)


def complaints(data_dir: Path, accepted: Accepted) -> list[str]:
    """What is wrong with a stopped daemon's journal and ledger; nothing, it is hoped."""
    found = []
    journaled: Accepted = Counter()
    biller = Biller()
    for expected, row in enumerate(journal_rows(data_dir), 1):
        if row.sequence != expected:
            return [f"the journal has row {row.sequence} where {expected} should be"]
        if (method := METHODS.get(Kind(row.kind))) is not None:
            journaled[method, digest(row.payload)] += 1
        biller.fold(to_event(entry_of(row)))
    for what, rows in (
        ("accepted, but not journaled", accepted - journaled),
        ("journaled, but not accepted", journaled - accepted),
    ):
        if rows:
            first = [f"{method} {payload_digest.hex()}" for method, payload_digest in [*rows][:SHOWN]]
            found.append(f"{rows.total()} {what}: {', '.join(first)}")
    bill = biller.bill()
    try:
        bill.check()
    except AuditError as error:
        found.append(f"the auditor's own bill contradicts itself: {error}")
    differences = bill.differences(ledger_of(data_dir))
    if differences:
        found.append(f"{len(differences)} rows of the ledger are not the auditor's: {differences[:SHOWN]}")
    return found
