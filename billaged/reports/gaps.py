"""What was not measured, and why: closed gaps, gaps that senders reported, those that are open now, time outside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple

from billaged.ledger.reader import LedgerReader
from billaged.ledger.views import Outside, Session, Span, Subject
from billaged.model.quantity import Usage
from billaged.model.records import COUNTER_FIELDS
from billaged.model.time import INT64_MAX, exact_seconds, format_instant
from billaged.reports.errors import NotInLedger
from billaged.reports.reasons import REPORTED, Reasons
from billaged.reports.sheet import Column, Record, Sheet
from billaged.reports.units import human_bytes, human_duration, human_instant, human_seconds
from billaged.reports.vms import pending_ns

State = Literal["closed", "reported", "pending", "outside"]

GAP_FIELDS: Final = (
    *("state", "kind", "vm_id", "customer_id", "session", "start", "end", "duration_ns", "duration_seconds"),
    *COUNTER_FIELDS,
    *("sequence", "reasons", "instances"),
)


class GapLine(NamedTuple):
    """A gap, whole, also where the report's span is shorter.

    ``closed`` is accounted for, with the counters billed across it. ``reported`` is what a
    sender said, whether samples were missing or not. ``pending`` has no end: the VM is silent,
    or its newest sample is older than the gap threshold. ``outside`` lies between a session
    that ended unseen and the VM's next one, and is in no life; without an end where there is none yet.
    """

    state: State
    # Of a closed gap: step, start or stop.
    kind: str | None
    vm_id: str
    customer_id: str | None
    ordinal: int | None
    start_ns: int
    end_ns: int | None
    duration_ns: int
    usage: Usage | None
    # The journal row that closed or reported it.
    sequence: int | None
    reasons: tuple[str, ...]
    # The instances that list the VM now, where there is no end.
    instances: tuple[str, ...] = ()


def gap_lines(reader: LedgerReader, subject: Subject, span: Span, now_ns: int) -> list[GapLine]:
    """All that overlap the span, by start and VM.

    Raises:
        NotInLedger: the ledger knows no such VM or customer.
    """
    reported = reader.reported_gaps(subject, span)
    # A sender may have spoken of a VM that never sent anything.
    if subject != Subject() and not reported and not reader.knows(subject):
        whose = [f"VM {subject.vm_id}"] if subject.vm_id is not None else []
        whose += [f"customer {subject.customer_id}"] if subject.customer_id is not None else []
        raise NotInLedger(f"the ledger knows no {' of '.join(whose)}.")
    gaps, outside = reader.gaps(subject, span), reader.outside(subject, span)
    running = [
        session
        for session in reader.newest_sessions(subject, running=True)
        if session.last_ns < min(span.to_ns, now_ns) and now_ns > span.from_ns
    ]
    starts = [*(gap.start_ns for gap in gaps), *(session.last_ns for session in running)]
    # As far as they reach: a gap has the same reasons whatever span shows it.
    reasons = Reasons(reader, subject, Span(min([span.from_ns, *starts]), INT64_MAX))
    pending = [session for session in running if _is_silent(session, reasons, reader, now_ns)]
    open_vms = [session.vm_id for session in pending] + [each.vm_id for each in outside if each.end_ns is None]
    instances = {vm_id: tuple(found) for vm_id, found in reader.instances_of(open_vms).items()}
    lines = [
        GapLine(
            "closed",
            gap.kind,
            gap.vm_id,
            gap.customer_id,
            gap.ordinal,
            gap.start_ns,
            gap.end_ns,
            gap.end_ns - gap.start_ns,
            gap.usage,
            gap.sequence,
            reasons.of(gap.vm_id, gap.start_ns, gap.end_ns),
        )
        for gap in gaps
    ]
    for said in reported:
        length_ns = said.resume_ns - said.last_sent_ns
        about_it = (said.vm_id, said.customer_id, None, said.last_sent_ns, said.resume_ns, length_ns)
        lines.append(GapLine("reported", None, *about_it, None, said.sequence, (REPORTED,)))
    for session in pending:
        about = (session.vm_id, session.customer_id, session.ordinal, session.last_ns)
        why = reasons.of(session.vm_id, session.last_ns, None)
        listed_by = instances.get(session.vm_id, ())
        lines.append(GapLine("pending", None, *about, None, pending_ns(session, now_ns), None, None, why, listed_by))
    lines += [_outside_line(each, now_ns, instances.get(each.vm_id, ())) for each in outside]
    return sorted(lines, key=lambda line: (line.start_ns, line.vm_id, line.state))


def _is_silent(session: Session, reasons: Reasons, reader: LedgerReader, now_ns: int) -> bool:
    threshold_ns = reader.rules.gap_threshold_of(session.customer_id)
    return session.vm_id in reasons.silent_vms or pending_ns(session, now_ns) > threshold_ns


def _outside_line(outside: Outside, now_ns: int, instances: tuple[str, ...]) -> GapLine:
    is_open = outside.end_ns is None
    end_ns = now_ns if outside.end_ns is None else outside.end_ns
    return GapLine(
        "outside",
        None,
        outside.vm_id,
        outside.customer_id,
        outside.ordinal,
        outside.start_ns,
        outside.end_ns,
        max(0, end_ns - outside.start_ns),
        None,
        None,
        (outside.end_kind,),
        instances if is_open else (),
    )


def gap_record(line: GapLine) -> Record:
    """Exact; counters are null where none were billed across it, and lists are words: CSV has no others."""
    counters = {name: None if line.usage is None else getattr(line.usage, name) for name in COUNTER_FIELDS}
    return {
        "state": line.state,
        "kind": line.kind,
        "vm_id": line.vm_id,
        "customer_id": line.customer_id,
        "session": line.ordinal,
        "start": format_instant(line.start_ns),
        "end": None if line.end_ns is None else format_instant(line.end_ns),
        "duration_ns": line.duration_ns,
        "duration_seconds": exact_seconds(line.duration_ns),
        **counters,
        "sequence": line.sequence,
        "reasons": " ".join(line.reasons),
        "instances": " ".join(line.instances),
    }


def gap_json(line: GapLine) -> dict[str, Any]:
    """The same, with lists as such."""
    return {**gap_record(line), "reasons": list(line.reasons), "instances": list(line.instances)}


def gap_sheet(lines: Sequence[GapLine]) -> Sheet:
    columns = [
        *map(Column, ("state", "kind", "reasons", "vm", "customer", "start", "end")),
        *(
            Column(heading, number=True)
            for heading in ("length", "cpu", "disk read", "disk written", "received", "sent")
        ),
    ]
    return Sheet(columns, [_cells(line) for line in lines])


def open_gap_lines(lines: Iterable[GapLine]) -> list[GapLine]:
    """Those without an end, by the instances that list the VM, then by VM."""
    return sorted((line for line in lines if line.end_ns is None), key=lambda line: (line.instances, line.vm_id))


def open_gap_sheet(lines: Sequence[GapLine]) -> Sheet:
    columns = [
        *map(Column, ("instance", "vm", "customer", "state", "reasons", "since")),
        Column("for", number=True),
    ]
    rows = [
        [
            *(" ".join(line.instances), line.vm_id, line.customer_id or "", line.state, " ".join(line.reasons)),
            *(human_instant(line.start_ns), human_duration(line.duration_ns)),
        ]
        for line in lines
    ]
    return Sheet(columns, rows)


def _cells(line: GapLine) -> list[str]:
    counters = [""] * len(COUNTER_FIELDS)
    if line.usage is not None:
        counters = [human_bytes(getattr(line.usage, name)) for name in COUNTER_FIELDS]
        counters[0] = human_seconds(line.usage.cpu_time_ns)
    return [
        line.state,
        line.kind or "",
        " ".join(line.reasons),
        line.vm_id,
        line.customer_id or "",
        human_instant(line.start_ns),
        "open" if line.end_ns is None else human_instant(line.end_ns),
        human_duration(line.duration_ns),
        *counters,
    ]
