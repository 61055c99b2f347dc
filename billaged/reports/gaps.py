"""What was not measured: closed gaps, gaps that senders reported, and those that may be open now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from billaged.ledger.reader import LedgerReader
from billaged.ledger.views import Span, Subject
from billaged.model.quantity import Usage
from billaged.model.records import COUNTER_FIELDS
from billaged.model.time import NANOS, format_instant
from billaged.reports.errors import NotInLedger
from billaged.reports.sheet import Column, Record, Sheet
from billaged.reports.units import exact_seconds, human_bytes, human_duration, human_instant
from billaged.reports.vms import pending_ns

State = Literal["closed", "reported", "pending"]

GAP_FIELDS: Final = (
    *("state", "kind", "vm_id", "customer_id", "session", "start", "end", "duration_ns", "duration_seconds"),
    *COUNTER_FIELDS,
    "sequence",
)


class GapLine(NamedTuple):
    """A gap, whole, also where the report's span is shorter.

    ``closed`` is accounted for, with the counters billed across it. ``reported`` is what a
    sender said, whether samples were missing or not. ``pending`` has no end: the VM was
    silent for longer than the gap threshold, up to now.
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
        )
        for gap in reader.gaps(subject, span)
    ]
    for said in reported:
        length_ns = said.resume_ns - said.last_sent_ns
        about_it = (said.vm_id, said.customer_id, None, said.last_sent_ns, said.resume_ns, length_ns)
        lines.append(GapLine("reported", None, *about_it, None, said.sequence))
    for session in reader.newest_sessions(subject, running=True):
        silent_ns = pending_ns(session, now_ns)
        overlaps = session.last_ns < span.to_ns and now_ns > span.from_ns
        if silent_ns > reader.rules.gap_threshold_ns and overlaps:
            about = (session.vm_id, session.customer_id, session.ordinal, session.last_ns)
            lines.append(GapLine("pending", None, *about, None, silent_ns, None, None))
    return sorted(lines, key=lambda line: (line.start_ns, line.vm_id, line.state))


def gap_record(line: GapLine) -> Record:
    """Exact; counters are null where none were billed across it."""
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
    }


def gap_sheet(lines: Sequence[GapLine]) -> Sheet:
    columns = [
        *map(Column, ("state", "kind", "vm", "customer", "start", "end")),
        *(
            Column(heading, number=True)
            for heading in ("length", "cpu", "disk read", "disk written", "received", "sent")
        ),
    ]
    return Sheet(columns, [_cells(line) for line in lines])


def _cells(line: GapLine) -> list[str]:
    counters = [""] * len(COUNTER_FIELDS)
    if line.usage is not None:
        counters = [human_bytes(getattr(line.usage, name)) for name in COUNTER_FIELDS]
        counters[0] = f"{line.usage.cpu_time_ns / NANOS:,.2f} s"
    return [
        line.state,
        line.kind or "",
        line.vm_id,
        line.customer_id or "",
        human_instant(line.start_ns),
        "open" if line.end_ns is None else human_instant(line.end_ns),
        human_duration(line.duration_ns),
        *counters,
    ]
