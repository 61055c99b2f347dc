"""The ledger against its journal: whether that is whole, and whether it gives this ledger."""

from __future__ import annotations

from pathlib import Path

from billaged.model.errors import StorageError
from billaged.reports.comparison import Difference
from billaged.reports.errors import ProofFailed
from billaged.reports.ledger_check import invariants as law
from billaged.reports.ledger_check.findings import Findings
from billaged.reports.replay import replay
from billaged.reports.verify import Progress, verify


def check_journal(data_dir: Path, findings: Findings, progress: Progress) -> None:
    """As ``billaged journal verify``."""
    try:
        found = verify(data_dir, progress)
    except StorageError as error:
        findings.broke(law.JOURNAL, "journal", {}, str(error))
        return
    findings.hold(found.rows, law.JOURNAL)
    findings.begun_anew, findings.journal_ends_early = found.begun_anew, found.ends_early
    for problem in found.problems:
        findings.broke(law.JOURNAL, "journal", {}, problem)
    findings.more(law.JOURNAL, found.more_bad_rows)


def check_replay(data_dir: Path, findings: Findings, progress: Progress) -> None:
    """As ``billaged journal replay``."""
    try:
        compared = replay(data_dir, None, progress)
    except (ProofFailed, StorageError) as error:
        findings.broke(law.REPLAY, "journal", {}, str(error))
        return
    findings.replayed_after = compared.begun_after
    for problem in compared.problems:
        findings.broke(law.REPLAY, "journal", {}, problem)
    for table in compared.tables:
        findings.hold(table.rows, law.REPLAY)
        for difference in table.first:
            findings.broke(law.REPLAY, table.table, difference.key, _problem(difference))
        findings.more(law.REPLAY, table.differing - len(table.first))


def _problem(difference: Difference) -> str:
    ledger, journal = difference.ledger, difference.journal
    if ledger is None:
        return "it is not in the ledger"
    if journal is None:
        return "it does not follow from the journal"
    return "; ".join(f"{name} is {value}, should be {journal[name]}" for name, value in ledger.items())
