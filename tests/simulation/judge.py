"""What must hold of a ledger: it is the auditor's bill, which is sound and true, and windows add up to it."""

from __future__ import annotations

from collections import Counter

from auditor.invariants import AuditError

from billaged.ledger.dump import dump
from simulation.daemon import Daemon
from simulation.order import of_order
from simulation.truth import Truth
from simulation.verdict import of_truth

_SHOWN = 6


def of_ledger(daemon: Daemon) -> list[str]:
    """At any moment at which the ledger has come to the journal's end."""
    audited = daemon.auditor.bill()
    ledger = dump(daemon.database)
    found = audited.differences(ledger)[:_SHOWN]
    if not found and ledger != audited.dump():
        found.append("the ledger has the auditor's rows in another order")
    try:
        audited.check()
    except AuditError as error:
        found.append(f"the auditor's bill contradicts itself: {error}")
    return found


def at_the_end(daemon: Daemon, truth: Truth, seen: Counter[str]) -> list[str]:
    """``seen`` counts what the truth could be held against."""
    bill = daemon.auditor.bill()
    seen["VMs as in order"], out_of_order = of_order(bill, daemon.events)
    return [
        *of_ledger(daemon),
        *daemon.windows.complaints(bill.rows("sessions"))[:_SHOWN],
        *of_truth(bill, daemon.events, truth, seen)[:_SHOWN],
        *out_of_order[:_SHOWN],
    ]
