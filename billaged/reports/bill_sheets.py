"""A bill for people: sheets with a heading each."""

from __future__ import annotations

from typing import Final

from billaged.ledger.reader import Anomaly
from billaged.model.records import COUNTER_FIELDS
from billaged.reports.anomaly_text import detail_text
from billaged.reports.bill import Bill, BillGap, BillLine
from billaged.reports.bill_buckets import BucketLine
from billaged.reports.completeness import Account, percent_of
from billaged.reports.sheet import Column, Sheet
from billaged.reports.units import gib_hours, human_bytes, human_duration, human_instant, human_seconds
from billaged.reports.usage import memory_peak_bytes

_TIMES: Final = ("lifetime_ns", "measured_ns", "gap_ns", "pending_ns")
_TIME_HEADINGS: Final = ("complete", "lifetime", "measured", "gap", "pending", "samples", "anomalies")
_USAGE_HEADINGS: Final = (
    *("cpu", "memory mean", "memory peak", "GiB-hours", "disk read", "disk written"),
    *("received", "sent", "cpu in gap", "score"),
)


def bill_sheets(bill: Bill) -> list[tuple[str, Sheet]]:
    """Sheets with a heading each, rounded; what completeness is rounded to, it is rounded down."""
    whose = " of ".join(value for value in bill.subject if value is not None)
    head = f"Bill of {whose}, {human_instant(bill.span.from_ns)} to {human_instant(bill.span.to_ns)} UTC"
    sheets = [(head, _lines_sheet(bill))]
    if bill.buckets is not None:
        sheets.append(("Buckets", _buckets_sheet(bill.buckets)))
    if bill.gaps:
        sheets.append(("Gaps", _gaps_sheet(bill.gaps)))
    if bill.anomalies:
        more = f", the first {len(bill.anomalies):,} of them" if bill.anomalies_left_out else ""
        sheets.append((f"Anomalies{more}", _anomalies_sheet(bill.anomalies)))
    return sheets


def _lines_sheet(bill: Bill) -> Sheet:
    """A VM's lies on its side."""
    if bill.subject.vm_id is not None:
        cells = zip((*_TIME_HEADINGS, *_USAGE_HEADINGS), _cells(bill.total), strict=True)
        rows = [("customer", " ".join(bill.total.customer_ids)), *cells]
        return Sheet([Column("vm"), Column(bill.subject.vm_id, number=True)], rows)
    columns = [Column("vm"), *(Column(heading, number=True) for heading in (*_TIME_HEADINGS, *_USAGE_HEADINGS))]
    return Sheet(columns, [[line.vm_id or "", *_cells(line)] for line in bill.lines], ["total", *_cells(bill.total)])


def _buckets_sheet(lines: list[BucketLine]) -> Sheet:
    headings = [heading for heading in _TIME_HEADINGS if heading != "pending"]
    columns = [Column("from"), Column("vm"), *(Column(heading, number=True) for heading in headings)]
    rows = []
    for line in lines:
        cells = dict(zip(_TIME_HEADINGS, _time_cells(line.account), strict=True))
        rows.append([human_instant(line.span.from_ns), line.vm_id, *(cells[heading] for heading in headings)])
    return Sheet(columns, rows)


def _gaps_sheet(gaps: list[BillGap]) -> Sheet:
    texts = ("state", "kind", "reasons", "vm", "start", "end")
    numbers = ("length", "in period", "cpu in period")
    columns = [*map(Column, texts), *(Column(heading, number=True) for heading in numbers)]
    rows = []
    for gap in gaps:
        line = gap.line
        rows.append(
            [
                *(line.state, line.kind or "", " ".join(line.reasons), line.vm_id, human_instant(line.start_ns)),
                "open" if line.end_ns is None else human_instant(line.end_ns),
                "" if line.end_ns is None else human_duration(line.duration_ns),
                human_duration(gap.in_period_ns),
                "" if gap.in_period is None else human_seconds(gap.in_period.cpu_time_ns),
            ]
        )
    return Sheet(columns, rows)


def _anomalies_sheet(anomalies: list[Anomaly]) -> Sheet:
    columns = [*map(Column, ("kind", "vm", "at")), Column("row", number=True), Column("values")]
    rows = [
        [each.kind, each.vm_id, human_instant(each.at_ns), str(each.sequence), detail_text(each.detail)]
        for each in anomalies
    ]
    return Sheet(columns, rows)


def _cells(line: BillLine) -> list[str]:
    usage = line.used.usage
    return [
        *_time_cells(line.account),
        human_seconds(usage.cpu_time_ns),
        human_bytes(usage.memory_mean_bytes),
        human_bytes(memory_peak_bytes(usage)),
        f"{gib_hours(usage.memory_byte_nanos):,.2f}",
        *(human_bytes(getattr(usage, name)) for name in COUNTER_FIELDS[1:]),
        human_seconds(line.used.across_gaps.cpu_time_ns),
        f"{line.used.score:,.2f}",
    ]


def _time_cells(account: Account) -> list[str]:
    percent = percent_of(account.measured_ns, account.lifetime_ns, 2)
    times = [human_duration(getattr(account, name)) for name in _TIMES]
    return ["" if percent is None else f"{percent:f} %", *times, f"{account.samples:,}", f"{account.anomalies:,}"]
