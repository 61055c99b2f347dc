"""After a run: the journal against what was accepted, the ledger against the auditor's bill of that journal."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from copy import deepcopy
from pathlib import Path

from auditor.biller import Biller
from auditor.convert import to_event
from auditor.events import Batch, Started
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


class PatientBiller(Biller):
    """The auditor's biller, for long journals in which much may overflow.

    Where it would copy all its books first, this one tries the record on books of that one VM.
    """

    def _whole_or_not(self, sequence: int, what: Batch | Started) -> None:
        if self._may_overflow(what) and self._overflows(sequence, what):
            self.books.bury(sequence, "metrics" if isinstance(what, Batch) else "started", "overflow")
        elif isinstance(what, Batch):
            self._batch(sequence, what)
        else:
            self._start(sequence, what)

    def _overflows(self, sequence: int, what: Batch | Started) -> bool:
        trial = Biller()
        trial.rules, trial.books.clock = self.rules, deepcopy(self.books.clock)
        if lives := self.sessions.get(what.vm_id):
            trial.sessions[what.vm_id] = [*lives[:-1], deepcopy(lives[-1])]
            # The one gap that can be taken back.
            if (tail := lives[-1].tail) is not None and tail.gap is not None:
                trial.books.gaps[tail.gap] = self.books.gaps[tail.gap]
        if what.vm_id in self.meters:
            trial.meters[what.vm_id] = deepcopy(self.meters[what.vm_id])
        if what.vm_id in self.newest_samples:
            trial.newest_samples[what.vm_id] = self.newest_samples[what.vm_id]
        trial._whole_or_not(sequence, what)
        return any(reason == "overflow" for *_, reason in trial.books.dead_letters)


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
    biller = PatientBiller()
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
