"""A usage report on paper."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

from billaged.ledger.views import Span
from billaged.model.quantity import Usage
from billaged.model.records import COUNTER_FIELDS
from billaged.model.time import exact_seconds, format_instant
from billaged.reports.sheet import Column, Record, Sheet, as_csv, as_json
from billaged.reports.units import gib_hours, human_bytes, human_duration, human_instant, human_seconds
from billaged.reports.usage import By, UsageLine, UsageReport, memory_peak_bytes

# What tells a line, before what it says.
_KEYS: Final[dict[By, tuple[str, ...]]] = {
    "total": (),
    "vm": ("vm_id",),
    "session": ("vm_id", "customer_id", "session", "session_start", "explicit_start", "session_end"),
    "bucket": ("bucket_start", "bucket_end"),
}
_EXACT: Final = (
    "cpu_time_ns",
    "memory_mean_bytes",
    "memory_peak_bytes",
    "memory_byte_nanos",
    *COUNTER_FIELDS[1:],
    "samples",
    "measured_ns",
    "gap_ns",
    *(f"gap_{name}" for name in COUNTER_FIELDS),
    "resource_score",
)
_HEADINGS: Final = (
    *("cpu", "memory mean", "memory peak", "GiB-hours", "disk read", "disk written"),
    *("received", "sent", "samples", "measured", "gap", "cpu in gap", "score"),
)


def usage_json(report: UsageReport) -> str:
    """Exact integers and, beside them, the same for reading; ``lines`` only where they were asked for."""
    whose = {name: value for name, value in report.subject._asdict().items() if value is not None}
    head = {
        **whose,
        "from": format_instant(report.span.from_ns),
        "to": format_instant(report.span.to_ns),
        "from_ns": report.span.from_ns,
        "to_ns": report.span.to_ns,
        "by": report.by,
        "score_weights": {name: str(weight) for name, weight in asdict(report.weights).items()},
    }
    total = {**_exact(report.total), **_readable(report.total)}
    if report.by == "total":
        return as_json({**head, "total": total})
    lines = [{**_key(line, report.by), **_exact(line), **_readable(line)} for line in report.lines]
    return as_json({**head, "lines": lines, "total": total})


def usage_csv(report: UsageReport) -> str:
    """The lines, and no total among them; the total alone where no lines were asked for."""
    if report.by == "total":
        names = ("from", "to", *_EXACT)
        return as_csv(names, [{**_span("", report.span), **_exact(report.total)}])
    records = [{**_key(line, report.by), **_exact(line)} for line in report.lines]
    return as_csv((*_KEYS[report.by], *_EXACT), records)


def usage_sheet(report: UsageReport) -> Sheet:
    """For people; a report without lines lies on its side."""
    if report.by == "total":
        cells = zip(_HEADINGS, _cells(report.total), strict=True)
        rows = [("from", human_instant(report.span.from_ns)), ("to", human_instant(report.span.to_ns)), *cells]
        whose = report.subject.vm_id or report.subject.customer_id or ""
        return Sheet([Column("usage"), Column(whose, number=True)], rows)
    heads = {"vm": ("vm",), "session": ("session", "start", "end"), "bucket": ("from",)}[report.by]
    columns = [*(Column(heading) for heading in heads), *(Column(heading, number=True) for heading in _HEADINGS)]
    lines = [[*_human_key(line, report.by), *_cells(line)] for line in report.lines]
    total = ["total", *[""] * (len(heads) - 1), *_cells(report.total)]
    return Sheet(columns, lines, total)


def _span(prefix: str, span: Span) -> Record:
    return {f"{prefix}from": format_instant(span.from_ns), f"{prefix}to": format_instant(span.to_ns)}


def _key(line: UsageLine, by: By) -> Record:
    if by == "vm":
        return {"vm_id": line.vm_id}
    if line.session is not None:
        session = line.session
        return {
            "vm_id": session.vm_id,
            "customer_id": session.customer_id,
            "session": session.ordinal,
            "session_start": format_instant(session.start_ns),
            "explicit_start": session.explicit,
            "session_end": None if session.end_ns is None else format_instant(session.end_ns),
        }
    return {"bucket_start": format_instant(line.span.from_ns), "bucket_end": format_instant(line.span.to_ns)}


def _human_key(line: UsageLine, by: By) -> list[str]:
    if by == "vm":
        return [line.vm_id or ""]
    if line.session is not None:
        session = line.session
        end = "running" if session.end_ns is None else human_instant(session.end_ns)
        return [str(session.ordinal), human_instant(session.start_ns), end]
    return [human_instant(line.span.from_ns)]


def _exact(line: UsageLine) -> Record:
    usage, across = line.usage, line.across_gaps
    return {
        **{name: getattr(usage, name) for name in _EXACT if hasattr(usage, name)},
        "memory_peak_bytes": memory_peak_bytes(usage),
        **{f"gap_{name}": getattr(across, name) for name in COUNTER_FIELDS},
        "resource_score": f"{line.score:f}",
    }


def _readable(line: UsageLine) -> Record:
    usage = line.usage
    return {
        "cpu_seconds": exact_seconds(usage.cpu_time_ns),
        "memory_gib_hours": f"{gib_hours(usage.memory_byte_nanos):f}",
        "measured_seconds": exact_seconds(usage.measured_ns),
        "gap_seconds": exact_seconds(usage.gap_ns),
        "gap_cpu_seconds": exact_seconds(line.across_gaps.cpu_time_ns),
    }


def _cells(line: UsageLine) -> list[str]:
    usage: Usage = line.usage
    return [
        human_seconds(usage.cpu_time_ns),
        human_bytes(usage.memory_mean_bytes),
        human_bytes(memory_peak_bytes(usage)),
        f"{gib_hours(usage.memory_byte_nanos):,.2f}",
        human_bytes(usage.disk_read_bytes),
        human_bytes(usage.disk_write_bytes),
        human_bytes(usage.network_rx_bytes),
        human_bytes(usage.network_tx_bytes),
        f"{usage.samples:,}",
        human_duration(usage.measured_ns),
        human_duration(usage.gap_ns),
        human_seconds(line.across_gaps.cpu_time_ns),
        f"{line.score:,.2f}",
    ]
