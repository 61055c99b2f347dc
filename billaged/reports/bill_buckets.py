"""A bill's account for each VM and bucket, one bucket at a time: a customer may have many VMs, a life many buckets."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import groupby
from math import lcm
from typing import Final, NamedTuple

from billaged.ledger.reader import LedgerReader
from billaged.ledger.views import Part, Session, Span, Subject
from billaged.model.time import format_duration, format_instant
from billaged.reports.completeness import Account, accounted
from billaged.reports.errors import BadSpan

# As for usage: more lines are no report.
_LINES_MAX: Final = 100_000


class BucketLine(NamedTuple):
    """``span`` is the bucket's, cut to the period."""

    span: Span
    vm_id: str
    account: Account


class _Item(NamedTuple):
    start_ns: int
    vm_id: str
    account: Account


class _Stretch(NamedTuple):
    from_ns: int
    to_ns: int
    vm_id: str


def bucket_lines(reader: LedgerReader, subject: Subject, span: Span, sessions: Iterable[Session]) -> list[BucketLine]:
    """By bucket and VM; none for a VM and bucket with no life, no sample and no anomaly.

    Where the bucket length was changed, lines are as long as it takes to hold whole
    buckets of every length.

    Raises:
        BadSpan: these would be too many.
        ProofFailed: a line's times do not add up.
    """
    cell_ns = lcm(reader.rules.bucket_ns, *reader.bucket_lengths(subject, span))
    gaps = [_Stretch(gap.start_ns, gap.end_ns, gap.vm_id) for gap in reader.gaps(subject, span)]
    lives = [_Stretch(*accounted(session), session.vm_id) for session in sessions]
    sources = [_measured(parts, cell_ns) for parts in reader.usage_parts(subject, span, "bucket")]
    sources += [
        (_Item(start_ns, vm_id, Account(gap_ns=length_ns)) for start_ns, vm_id, length_ns in _cut(gaps, span, cell_ns)),
        (_Item(start, vm_id, Account(lifetime_ns=length_ns)) for start, vm_id, length_ns in _cut(lives, span, cell_ns)),
        _anomalies(reader, subject, span, cell_ns),
    ]
    lines: list[BucketLine] = []
    nothing = Account()
    for start_ns, items in groupby(heapq.merge(*sources, key=_start_ns), key=_start_ns):
        accounts: dict[str, Account] = defaultdict(Account)
        for item in items:
            accounts[item.vm_id] += item.account
        cell = Span(max(start_ns, span.from_ns), min(start_ns + cell_ns, span.to_ns))
        added = [BucketLine(cell, vm_id, each) for vm_id, each in sorted(accounts.items()) if each != nothing]
        if len(lines) + len(added) > _LINES_MAX:
            raise _too_many(span, cell, cell_ns, lines)
        for line in added:
            line.account.check(line.vm_id, cell)
        lines += added
    return lines


def _measured(parts: Iterator[Part], cell_ns: int) -> Iterator[_Item]:
    for part in parts:
        account = Account(measured_ns=part.usage.measured_ns, samples=part.usage.samples)
        yield _Item(part.bucket_start_ns - part.bucket_start_ns % cell_ns, part.vm_id, account)


def _anomalies(reader: LedgerReader, subject: Subject, span: Span, cell_ns: int) -> Iterator[_Item]:
    for anomaly in reader.anomalies(subject, span):
        yield _Item(anomaly.at_ns - anomaly.at_ns % cell_ns, anomaly.vm_id, Account(anomalies=1))


def _cut(stretches: Iterable[_Stretch], span: Span, cell_ns: int) -> Iterator[tuple[int, str, int]]:
    """(cell start, VM, length inside) of all stretches in the span, by cell.

    One at a time, for a stretch may be decades long and a cell a minute.
    """
    inside = (_Stretch(max(each.from_ns, span.from_ns), min(each.to_ns, span.to_ns), each.vm_id) for each in stretches)
    waiting = [each for each in inside if each.from_ns < each.to_ns]
    heapq.heapify(waiting)
    while waiting:
        from_ns, to_ns, vm_id = waiting[0]
        start_ns = from_ns - from_ns % cell_ns
        cut_ns = min(start_ns + cell_ns, to_ns)
        yield start_ns, vm_id, cut_ns - from_ns
        if cut_ns < to_ns:
            heapq.heapreplace(waiting, _Stretch(cut_ns, to_ns, vm_id))
        else:
            heapq.heappop(waiting)


def _too_many(span: Span, cell: Span, cell_ns: int, lines: list[BucketLine]) -> BadSpan:
    message = (
        f"--by bucket makes more than {_LINES_MAX:,} lines of {format_duration(cell_ns)} each"
        f" from {format_instant(span.from_ns)} to {format_instant(span.to_ns)}."
    )
    if not lines:
        return BadSpan(message, "Take one VM at a time, with --vm, or leave --by bucket out.")
    fits = f"{format_instant(span.from_ns)}..{format_instant(cell.from_ns)}"
    return BadSpan(message, f"Take a shorter period, as --period {fits}, or leave --by bucket out.")


def _start_ns(item: _Item) -> int:
    return item.start_ns
