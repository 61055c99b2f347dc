"""The VMs that the ledger knows: each one's newest session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from billaged.ledger.reader import LedgerReader
from billaged.ledger.views import Session, Subject
from billaged.model.time import format_instant
from billaged.reports.errors import NotInLedger
from billaged.reports.sheet import Column, Record, Sheet
from billaged.reports.units import human_duration, human_instant

VM_FIELDS: Final = (
    *("vm_id", "customer_id", "state", "session", "start", "explicit_start", "end", "end_kind", "newest_sample"),
    *("age_ns", "samples", "measured_ns", "gap_ns", "pending_ns"),
)


def newest_sessions(reader: LedgerReader, subject: Subject, *, running: bool) -> list[Session]:
    """
    Raises:
        NotInLedger: the ledger knows no such customer.
    """
    if subject.customer_id is not None and not reader.knows(subject):
        raise NotInLedger(f"the ledger knows no customer {subject.customer_id}.")
    return reader.newest_sessions(subject, running=running)


def pending_ns(session: Session, now_ns: int) -> int:
    """The time since a running session's newest sample: in no account yet. 0 where it has ended."""
    return max(0, now_ns - session.last_ns) if session.end_ns is None else 0


def vm_record(session: Session, now_ns: int) -> Record:
    """Exact. ``age_ns`` is the time since the newest sample, null where there is none."""
    return {
        "vm_id": session.vm_id,
        "customer_id": session.customer_id,
        "state": _state(session),
        "session": session.ordinal,
        "start": format_instant(session.start_ns),
        "explicit_start": session.explicit,
        "end": None if session.end_ns is None else format_instant(session.end_ns),
        "end_kind": session.end_kind,
        "newest_sample": format_instant(session.last_ns) if session.samples else None,
        "age_ns": max(0, now_ns - session.last_ns) if session.samples else None,
        "samples": session.samples,
        "measured_ns": session.measured_ns,
        "gap_ns": session.gap_ns,
        "pending_ns": pending_ns(session, now_ns),
    }


def vm_sheet(sessions: Sequence[Session], now_ns: int) -> Sheet:
    columns = [
        *map(Column, ("vm", "customer", "state", "start", "opened", "newest sample")),
        *(Column(heading, number=True) for heading in ("age", "samples", "measured", "gap", "pending")),
    ]
    return Sheet(columns, [_cells(session, now_ns) for session in sessions])


def _cells(session: Session, now_ns: int) -> list[str]:
    return [
        session.vm_id,
        session.customer_id,
        _state(session),
        human_instant(session.start_ns),
        "explicit" if session.explicit else "implicit",
        human_instant(session.last_ns) if session.samples else "none",
        human_duration(max(0, now_ns - session.last_ns)) if session.samples else "",
        f"{session.samples:,}",
        human_duration(session.measured_ns),
        human_duration(session.gap_ns),
        human_duration(pending_ns(session, now_ns)) if session.end_ns is None else "",
    ]


def _state(session: Session) -> str:
    return "running" if session.end_ns is None else "ended"
