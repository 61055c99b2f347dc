"""The judge of every fault test: sender's word, journal and ledger against each other.

(a) What was acknowledged is in the journal exactly as it was sent; what had no answer may be, nothing else is.
(b) The ledger is the auditor's bill of the journal, table by table.
(c) Once all is acknowledged: each VM is billed the sum of its counters' steps, once, in as many sessions as it booted.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from auditor.bill import Bill
from auditor.biller import Biller
from auditor.convert import to_event
from daemon_process import ledger_of
from fuzz.judge import METHODS, journal_rows

from billaged.intake.journal import JournalRow, entry_of
from billaged.model.records import COUNTER_FIELDS, Kind
from faults.load import Fleet, Sent

_SHOWN = 5


def check_journal(data_dir: Path, fleet: Fleet) -> None:
    """(a), of files that nobody writes now."""
    check_rows(list(journal_rows(data_dir)), fleet)


def check_rows(rows: list[JournalRow], fleet: Fleet) -> None:
    assert [row.sequence for row in rows] == list(range(1, len(rows) + 1))
    journaled = Counter(
        Sent(method, row.payload) for row in rows if (method := METHODS.get(Kind(row.kind))) is not None
    )
    _none(fleet.acked - journaled, "acknowledged, but not in the journal")
    _none(journaled - fleet.acked - fleet.unknown, "in the journal, though nobody can have sent it")


def check_ledger(data_dir: Path, biller: Biller | None = None) -> Bill:
    """(b), of a ledger that has folded its whole journal; the bill."""
    biller = Biller() if biller is None else biller
    for row in journal_rows(data_dir):
        biller.fold(to_event(entry_of(row)))
    return _alike(biller, data_dir)


def check_all(data_dir: Path, fleet: Fleet) -> None:
    """(a), (b) and (c), of a stopped daemon after ``Fleet.settle``."""
    check_journal(data_dir, fleet)
    bill = check_ledger(data_dir)
    sessions = bill.rows("sessions")
    assert not bill.tables["dead_letters"]
    for vm in fleet.vms:
        lives = [row for row in sessions if row["vm_id"] == vm.vm_id]
        assert [sum(row[name] for row in lives) for name in COUNTER_FIELDS] == vm.used, vm.vm_id
        assert len(lives) == vm.boots, vm.vm_id
        assert [row["end_kind"] for row in lives] == ["stop"] * (vm.boots - vm.running) + [None] * vm.running


class CrashJudge:
    """Judges what each crash leaves, before anything is repaired: a ledger may be behind its journal, never wrong."""

    def __init__(self, data_dir: Path, fleet: Fleet, scratch: Path) -> None:
        self._data_dir, self._fleet, self._scratch = data_dir, fleet, scratch
        self._biller = Biller()
        self._position = 0
        # Of the last crash: rows that the ledger had not folded yet.
        self.behind = 0

    def check(self) -> None:
        """(a), and (b) for the part of the journal that the ledger covers."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        # Opening the files would already repair them.
        shutil.copytree(self._data_dir, self._scratch)
        if _tables(self._scratch / "journal.db") == 0:
            # It did not live long enough to make them.
            assert not self._fleet.acked
            return
        rows = list(journal_rows(self._scratch))
        check_rows(rows, self._fleet)
        position = _ledger_position(self._scratch / "ledger.db")
        assert self._position <= position <= len(rows)
        self.behind = len(rows) - position
        for row in rows[self._position : position]:
            self._biller.fold(to_event(entry_of(row)))
        self._position = position
        if position:
            _alike(self._biller, self._scratch)


def _alike(biller: Biller, data_dir: Path) -> Bill:
    bill = biller.bill()
    bill.check()
    differences = bill.differences(ledger_of(data_dir))
    assert differences[:_SHOWN] == [], f"{len(differences)} rows"
    return bill


def _none(found: Counter[Sent], what: str) -> None:
    shown = [f"{sent.method} {sent.payload.hex()}" for sent in list(found)[:_SHOWN]]
    assert not found, f"{found.total()} {what}: {shown}"


def _tables(path: Path) -> int:
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])


def _ledger_position(path: Path) -> int:
    """0 where there is no ledger yet."""
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path)) as connection:
        if not connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'checkpoint'").fetchone()[0]:
            return 0
        row = connection.execute("SELECT position FROM checkpoint").fetchone()
        return int(row[0]) if row is not None else 0


def no_traceback(lines: Iterable[str]) -> None:
    """What a daemon prints beside its log when it cannot go on: lines for people, and nothing else."""
    strange = [line for line in lines if not line.startswith("billaged: error: ")]
    assert not strange, strange
