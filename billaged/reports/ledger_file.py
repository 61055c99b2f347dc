"""Whether a ledger file can be relied on: the data directory's with its journal, or a copy by itself."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from billaged.ledger.audit_reader import auditing
from billaged.ledger.backup import LedgerFile, look_at
from billaged.ledger.database import FILE_NAME
from billaged.ledger.views import Subject
from billaged.reports.ledger_check import invariants as law
from billaged.reports.ledger_check.check import check_rows
from billaged.reports.ledger_check.findings import Findings
from billaged.reports.ledger_check.verdict import Bar, Check, Verdict, verdict


class LedgerChecked(NamedTuple):
    path: Path
    found: LedgerFile
    verdict: Verdict


def check_ledger(data_dir: Path, bar: Bar) -> LedgerChecked:
    """The ledger of a data directory and the journal beside it. Changes nothing; a daemon may run.

    Raises:
        StorageError: one of them is missing, of another version, or cannot be read.
    """
    path = data_dir / FILE_NAME
    found = look_at(path)
    return LedgerChecked(path, found, verdict(data_dir, Subject(), "quick", bar))


def check_copy(path: Path, bar: Bar) -> LedgerChecked:
    """A ledger file by itself, whatever it is called.

    Raises:
        StorageError: it is missing, of another version, or cannot be read.
    """
    found = look_at(path)
    findings = Findings()
    with auditing(path) as reader:
        position = reader.position
        findings.hold(1, law.FILE)
        with bar("reading the file"):
            for problem in reader.structure_problems():
                findings.broke(law.FILE, "ledger", {}, problem)
        with bar("checking rows") as progress:
            check_rows(reader, Subject(), findings, progress)
    checks = [
        Check(
            name,
            None if name in (law.JOURNAL, law.REPLAY) else findings.checked[name],
            findings.broken[name],
            findings.first.get(name, []),
        )
        for name in law.SENTENCES
    ]
    return LedgerChecked(path, found, Verdict(Subject(), position, checks))
