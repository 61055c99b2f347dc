"""Everything that a ledger can be held against, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Literal, NamedTuple

from billaged.intake.journal import BegunAnew
from billaged.intake.sqlite import FILE_NAME as JOURNAL_NAME
from billaged.ledger.audit_reader import AuditReader, auditing
from billaged.ledger.database import FILE_NAME
from billaged.ledger.views import LedgerPosition, Subject
from billaged.model.errors import StorageError
from billaged.reports.errors import NotInLedger
from billaged.reports.ledger_check import invariants as law
from billaged.reports.ledger_check.check import check_rows
from billaged.reports.ledger_check.findings import Broken, Findings
from billaged.reports.ledger_check.proof import check_journal, check_replay
from billaged.reports.verify import Progress

# all: everything. quick: no replay. ledger: nothing but ledger.db.
Scope = Literal["all", "quick", "ledger"]

_LEFT_OUT: Final[dict[Scope, tuple[str, ...]]] = {
    "all": (),
    "quick": (law.REPLAY,),
    "ledger": (law.JOURNAL, law.REPLAY),
}

# A bar of this label, for as long as it is open.
Bar = Callable[[str], AbstractContextManager[Progress]]


class Check(NamedTuple):
    """One invariant: against how many rows it was held, and how many broke it. ``rows`` is None where it was not."""

    invariant: str
    rows: int | None
    broken: int
    # The first few.
    first: list[Broken]


class Verdict(NamedTuple):
    subject: Subject
    # Up to where the rows were read.
    position: LedgerPosition
    checks: list[Check]
    # The cut that the replay began at, 0 for the first row: what was final there was not replayed.
    replayed_after: int = 0
    # Where the journal went on without rows that were lost: there is nothing to prove what they gave with.
    begun_anew: Sequence[BegunAnew] = ()
    # Whether it lacks rows at its end that the ledger has.
    journal_ends_early: bool = False

    @property
    def broken(self) -> int:
        return sum(check.broken for check in self.checks)


def verdict(data_dir: Path, subject: Subject, scope: Scope, bar: Bar) -> Verdict:
    """Check the ledger of a data directory. Changes nothing; a daemon may run.

    With a subject, only what is of its VMs: the journal, the file and the tallies are the whole ledger's.

    Raises:
        NotInLedger: the ledger knows no such VM or customer.
        StorageError: ledger or journal is missing, the ledger is of another version, or nothing of it can be read.
    """
    left_out = _LEFT_OUT[scope] if subject == Subject() else law.OF_THE_WHOLE
    if law.JOURNAL not in left_out and not (data_dir / JOURNAL_NAME).exists():
        raise StorageError(
            f"there is no journal at {data_dir / JOURNAL_NAME} to prove the ledger with.",
            "Give --ledger-only to check what is there.",
        )
    findings = Findings()
    position: LedgerPosition | None = None
    try:
        with auditing(data_dir / FILE_NAME) as reader:
            _refuse_unknown(reader, subject)
            position = reader.position
            if law.FILE not in left_out:
                with bar("reading the file"):
                    _check_file(reader, findings)
            with bar("checking rows") as progress:
                check_rows(reader, subject, findings, progress)
    except StorageError as error:
        if position is None or law.FILE in left_out:
            raise
        # Pages that cannot be read: its rows say nothing, but whether its journal is whole is what counts now.
        findings.broke(law.FILE, "ledger", {}, str(error))
        left_out = (*left_out, *(name for name in law.SENTENCES if name not in law.OF_THE_WHOLE), law.TALLIES)
    if law.JOURNAL not in left_out:
        with bar("verifying the journal") as progress:
            check_journal(data_dir, findings, progress)
    if law.REPLAY not in left_out:
        with bar("folding the journal anew") as progress:
            check_replay(data_dir, findings, progress)
    checks = [_check(name, findings, name in left_out) for name in law.SENTENCES]
    return Verdict(subject, position, checks, findings.replayed_after, findings.begun_anew, findings.journal_ends_early)


def _refuse_unknown(reader: AuditReader, subject: Subject) -> None:
    if subject != Subject() and not reader.count("sessions", subject):
        whose = [f"VM {subject.vm_id}"] if subject.vm_id is not None else []
        whose += [f"customer {subject.customer_id}"] if subject.customer_id is not None else []
        raise NotInLedger(f"the ledger knows no {' of '.join(whose)}.")


def _check_file(reader: AuditReader, findings: Findings) -> None:
    findings.hold(1, law.FILE)
    for problem in reader.structure_problems():
        findings.broke(law.FILE, "ledger", {}, problem)


def _check(invariant: str, findings: Findings, left_out: bool) -> Check:
    if left_out:
        return Check(invariant, None, 0, [])
    return Check(invariant, findings.checked[invariant], findings.broken[invariant], findings.first.get(invariant, []))
