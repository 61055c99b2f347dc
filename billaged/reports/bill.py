"""The bill of a period that can be proved: usage, how much of each life was measured, and all that stands behind it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from decimal import Decimal
from typing import Final, Literal, NamedTuple

from billaged.ledger.reader import Anomaly, LedgerReader
from billaged.ledger.views import Gap, LedgerPosition, Session, Span, Subject
from billaged.model.quantity import ScoreWeights, Usage
from billaged.model.time import format_instant
from billaged.reports.bill_buckets import BucketLine, bucket_lines
from billaged.reports.completeness import Account, overlap_ns, time_account
from billaged.reports.errors import BadSpan, NotInLedger
from billaged.reports.gaps import GapLine, gap_lines
from billaged.reports.usage import UsageLine, gap_part, usage_report

BillBy = Literal["vm", "bucket"]

# All are counted; what a page cannot hold, a shorter period shows.
_ANOMALIES_LISTED_MAX: Final = 100_000


class BillLine(NamedTuple):
    """A VM's part of a bill, or the total. ``customer_ids`` are those of its sessions that touch the period."""

    vm_id: str | None
    customer_ids: tuple[str, ...]
    account: Account
    used: UsageLine


class BillGap(NamedTuple):
    """A gap, whole, and what of it lies in the period: of a closed one, counters too."""

    line: GapLine
    in_period_ns: int
    in_period: Usage | None


class Bill(NamedTuple):
    """``buckets`` is None where they were not asked for; ``anomalies`` are the first of all that are counted."""

    subject: Subject
    span: Span
    # What is pending is pending up to here: now, or the period's end once that is past.
    as_of_ns: int
    position: LedgerPosition
    weights: ScoreWeights
    lines: list[BillLine]
    total: BillLine
    buckets: list[BucketLine] | None
    gaps: list[BillGap]
    anomalies: list[Anomaly]
    anomalies_left_out: int


def bill(reader: LedgerReader, subject: Subject, span: Span, by: BillBy, weights: ScoreWeights, now_ns: int) -> Bill:
    """
    Raises:
        NotInLedger: the ledger knows no such VM or customer, or not both together.
        BadSpan: the period cuts through a bucket with usage, or has too many buckets to list.
        ProofFailed: measured and gap are not the lifetime: the ledger is damaged.
    """
    if not reader.knows(subject):
        whose = [f"VM {subject.vm_id}"] if subject.vm_id is not None else []
        whose += [f"customer {subject.customer_id}"] if subject.customer_id is not None else []
        raise NotInLedger(f"the ledger knows no {' of '.join(whose)}.")
    _refuse_cuts(reader, subject, span)
    listed, counts = _anomalies(reader, subject, span)
    sessions = reader.sessions(subject)
    report = usage_report(reader, subject, span, "vm", weights)
    used = {str(line.vm_id): line for line in report.lines}
    lines = _lines(span, sessions, used, counts, now_ns)
    customers = sorted({customer for line in lines for customer in line.customer_ids})
    account = sum((line.account for line in lines), Account())
    return Bill(
        subject,
        span,
        min(now_ns, span.to_ns),
        reader.position,
        weights,
        lines,
        BillLine(None, tuple(customers), account, report.total),
        bucket_lines(reader, subject, span, sessions) if by == "bucket" else None,
        _gaps(reader, subject, span, now_ns),
        listed,
        sum(counts.values()) - len(listed),
    )


def _refuse_cuts(reader: LedgerReader, subject: Subject, span: Span) -> None:
    for side, at_ns in (("begins", span.from_ns), ("ends", span.to_ns)):
        if (cut := reader.buckets_cut_by(subject, at_ns)) is not None:
            edges = [format_instant(edge) for edge in cut]
            raise BadSpan(
                f"--period {side} at {format_instant(at_ns)}, inside the bucket from {edges[0]} to {edges[1]},"
                " whose usage has no finer times.",
                f"Let it {side.removesuffix('s')} at {edges[0]} or {edges[1]}.",
            )


def _anomalies(reader: LedgerReader, subject: Subject, span: Span) -> tuple[list[Anomaly], Counter[str]]:
    """The first of them, and how many there are, by VM."""
    listed: list[Anomaly] = []
    counts: Counter[str] = Counter()
    for anomaly in reader.anomalies(subject, span):
        counts[anomaly.vm_id] += 1
        if len(listed) < _ANOMALIES_LISTED_MAX:
            listed.append(anomaly)
    return listed, counts


def _lines(
    span: Span, sessions: Iterable[Session], used: dict[str, UsageLine], counts: Counter[str], now_ns: int
) -> list[BillLine]:
    """A line for each VM that lived, was pending, or has an anomaly or usage in the period; by VM."""
    times: dict[str, Account] = defaultdict(Account)
    customers: dict[str, set[str]] = defaultdict(set)
    for session in sessions:
        account = time_account(session, span, now_ns)
        # A life of no length is one where its only sample is.
        if account != Account() or span.from_ns <= session.start_ns < span.to_ns:
            times[session.vm_id] += account
            customers[session.vm_id].add(session.customer_id)
    lines = []
    for vm_id in sorted({*times, *used, *counts}):
        line = used.get(vm_id) or UsageLine(span, Usage(), Usage(), Decimal(0), vm_id)
        usage = line.usage
        counted = Account(
            measured_ns=usage.measured_ns, gap_ns=usage.gap_ns, samples=usage.samples, anomalies=counts[vm_id]
        )
        account = times[vm_id] + counted
        account.check(vm_id, span)
        lines.append(BillLine(vm_id, tuple(sorted(customers[vm_id])), account, line))
    return lines


def _gaps(reader: LedgerReader, subject: Subject, span: Span, now_ns: int) -> list[BillGap]:
    gaps = []
    for line in gap_lines(reader, subject, span, now_ns):
        if line.state == "outside" and line.end_ns is None and line.start_ns < span.from_ns:
            # It ended in an earlier period, and may be gone for good: not to be told each month.
            continue
        end_ns = now_ns if line.end_ns is None else line.end_ns
        gaps.append(BillGap(line, overlap_ns(span, line.start_ns, end_ns), _counters(line, span)))
    return gaps


def _counters(line: GapLine, span: Span) -> Usage | None:
    """What a closed gap bills in the span: in proportion to time."""
    if line.end_ns is None or line.usage is None or line.ordinal is None or line.sequence is None:
        return None
    about = (line.vm_id, line.ordinal, line.start_ns, line.end_ns, line.kind or "", line.customer_id or "")
    return gap_part(Gap(*about, line.usage, line.sequence), span)
