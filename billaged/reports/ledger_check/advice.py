"""What to do next where a ledger or its journal does not hold."""

from __future__ import annotations

from typing import Final

from billaged.ledger.checked import RESTORE_OR_FOLD
from billaged.reports.errors import ProofFailed
from billaged.reports.findings import Verification
from billaged.reports.ledger_check import invariants as law
from billaged.reports.ledger_check.verdict import Verdict

# What a ledger has folded it does not need again: an older journal would mend nothing, and lose what came since.
_KEEP_THE_JOURNAL: Final = (
    "Keep all files as they are: an older journal in its place would lose what was acknowledged since."
)
_PROVE_THE_REST: Final = (
    "The ledger's own rows hold, and it can still be proved from a cut after the bad rows: 'billaged journal cuts',"
    " then 'billaged journal replay --from CUT'."
)
_BEGIN_ANEW: Final = (
    "Its end is missing, and a start refuses it. Put back the newer journal; where that is lost, and the ledger's own"
    " rows hold ('billaged verify --ledger-only'), 'billaged journal begin-anew' goes on behind the ledger."
)
_RESTORE_BOTH: Final = (
    "Keep a copy of all files, then put back a backup that holds: 'billaged verify --data-dir BACKUP' says whether it"
    " does, 'billaged restore BACKUP' puts it back."
)


def failure(verdict: Verdict, *, is_copy: bool = False) -> ProofFailed:
    """The error for a verdict with broken rows: what is broken, and what to do. ``is_copy``: it is in no use."""
    broken = [check.invariant for check in verdict.checks if check.broken]
    advice = "Do not restore it." if is_copy else _advice(set(broken), verdict)
    return ProofFailed(f"the ledger breaks what it must hold: {', '.join(broken)}. {advice}")


def after_verification(found: Verification) -> str:
    """What to know after a verification of the journal that has found problems."""
    if found.ledger_position is None and len(found.problems) == 1:
        return "every row of the journal holds"
    if found.ends_early:
        return f"{_KEEP_THE_JOURNAL} {_BEGIN_ANEW}"
    return f"{_KEEP_THE_JOURNAL} 'billaged verify' says whether the ledger holds."


def _advice(broken: set[str], verdict: Verdict) -> str:
    if law.JOURNAL in broken:
        # Without a whole journal the replay fails whatever the ledger says.
        if broken - {law.JOURNAL, law.REPLAY}:
            return _RESTORE_BOTH
        return f"{_KEEP_THE_JOURNAL} {_BEGIN_ANEW if verdict.journal_ends_early else _PROVE_THE_REST}"
    if any(check.invariant == law.JOURNAL and check.rows is not None for check in verdict.checks):
        return f"The journal is whole, so nothing is lost. {RESTORE_OR_FOLD}"
    return f"'billaged verify' says whether the journal is whole, which can give it anew. {RESTORE_OR_FOLD}"
