"""Usage of a VM or a customer in a span: facts, corrections, and the span's part of each gap."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator
from decimal import Decimal
from itertools import groupby
from math import lcm
from typing import Final, Literal, NamedTuple, NoReturn

from billaged.ledger.reader import LedgerReader
from billaged.ledger.views import Gap, Grouping, Part, Session, Span, Subject
from billaged.model.quantity import ScoreWeights, Usage, resource_score
from billaged.model.records import COUNTER_FIELDS
from billaged.model.time import format_duration, format_instant
from billaged.reports.errors import BadSpan, NotInLedger

By = Literal["total", "vm", "session", "bucket"]

# 69 days of minutes, 11 years of hours: more lines are no report, and take a gigabyte.
_LINES_MAX: Final = 100_000


class UsageLine(NamedTuple):
    """What was used, all in all, and what of it lies in gaps.

    ``span`` is what the line is about: the report's span, a bucket's, or a session's
    whole life. ``score`` is the sum of the VMs' scores, each over the time it was there
    (measured and gap): so a customer's is that of its VMs, however they overlap.
    """

    span: Span
    usage: Usage
    across_gaps: Usage
    score: Decimal
    vm_id: str | None = None
    session: Session | None = None


class UsageReport(NamedTuple):
    """``lines`` are empty for ``by="total"``. ``total`` is over the whole span, so its peak and mean are too."""

    subject: Subject
    span: Span
    by: By
    lines: list[UsageLine]
    total: UsageLine
    # What the scores were computed with: they are the reader's settings, not the ledger's.
    weights: ScoreWeights


class _Item(NamedTuple):
    """A part of a line: what its line is told by, the VM, and the usage, seen or across a gap."""

    key: tuple[str | int, ...]
    vm_id: str
    usage: Usage
    is_gap: bool


def usage_report(reader: LedgerReader, subject: Subject, span: Span, by: By, weights: ScoreWeights) -> UsageReport:
    """
    Raises:
        NotInLedger: the ledger knows no such VM or customer.
        BadSpan: the span cuts through a bucket with usage; the message names its edges.
    """
    if not reader.knows(subject):
        what = f"VM {subject.vm_id}" if subject.vm_id is not None else f"customer {subject.customer_id}"
        raise NotInLedger(f"the ledger knows no {what}.")
    _refuse_cuts(reader, subject, span)
    gaps = reader.gaps(subject, span)
    total = _line(span, _items(reader, subject, span, "vm", gaps), weights)
    lines: list[UsageLine] = []
    if by == "vm":
        items = sorted(_items(reader, subject, span, "vm", gaps), key=_key)
        for (vm_id,), group in groupby(items, key=_key):
            lines.append(_line(span, group, weights)._replace(vm_id=str(vm_id)))
    elif by == "session":
        lines = _by_session(reader, subject, span, gaps, weights)
    elif by == "bucket":
        lines = _by_bucket(reader, subject, span, gaps, weights)
    return UsageReport(subject, span, by, lines, total, weights)


def gap_part(gap: Gap, span: Span) -> Usage:
    """What of a gap falls into a span: each counter in proportion to time, as cum(end) - cum(start).

    With d the amount and [a, b) the gap, cum(e) = floor(d * (e - a) / (b - a)): the
    parts of neighbouring spans add up to exactly the whole.
    """
    from_ns, to_ns = max(gap.start_ns, span.from_ns), min(gap.end_ns, span.to_ns)
    whole_ns = gap.end_ns - gap.start_ns
    counters = {}
    for name in COUNTER_FIELDS:
        amount = getattr(gap.usage, name)
        counters[name] = amount * (to_ns - gap.start_ns) // whole_ns - amount * (from_ns - gap.start_ns) // whole_ns
    return Usage(**counters, gap_ns=to_ns - from_ns)


def _refuse_cuts(reader: LedgerReader, subject: Subject, span: Span) -> None:
    for option, at_ns in (("--from", span.from_ns), ("--to", span.to_ns)):
        if (cut := reader.buckets_cut_by(subject, at_ns)) is not None:
            edges = [format_instant(edge) for edge in cut]
            raise BadSpan(
                f"{option} {format_instant(at_ns)} cuts through the bucket from {edges[0]} to {edges[1]},"
                " whose usage has no finer times.",
                f"Take {option} {edges[0]} or {option} {edges[1]}.",
            )


def _items(reader: LedgerReader, subject: Subject, span: Span, by: Grouping, gaps: Iterable[Gap]) -> Iterator[_Item]:
    """All of the span, kept apart by VM or by session."""
    for parts in reader.usage_parts(subject, span, by):
        for part in parts:
            yield _Item(_session_key(part) if by == "session" else (part.vm_id,), part.vm_id, part.usage, False)
    for gap in gaps:
        key = _session_key(gap) if by == "session" else (gap.vm_id,)
        yield _Item(key, gap.vm_id, gap_part(gap, span), True)


def _by_session(
    reader: LedgerReader, subject: Subject, span: Span, gaps: list[Gap], weights: ScoreWeights
) -> list[UsageLine]:
    sessions = {(s.vm_id, s.ordinal): s for s in reader.sessions(subject)}
    lines = []
    items = sorted(_items(reader, subject, span, "session", gaps), key=_key)
    for key, group in groupby(items, key=_key):
        session = sessions[str(key[0]), int(key[1])]
        lines.append(_line(span, group, weights)._replace(vm_id=session.vm_id, session=session))
    return lines


def _by_bucket(
    reader: LedgerReader, subject: Subject, span: Span, gaps: list[Gap], weights: ScoreWeights
) -> list[UsageLine]:
    """A line for each bucket with usage, one bucket at a time: a customer may have many VMs.

    Where the bucket length was changed, lines are as long as it takes to hold whole
    buckets of every length.
    """
    cell_ns = lcm(reader.rules.bucket_ns, *reader.bucket_lengths(subject, span))
    sources = [_cells(parts, cell_ns) for parts in reader.usage_parts(subject, span, "bucket")]
    sources.append(_gap_cells(gaps, span, cell_ns))
    lines: list[UsageLine] = []
    for (start_ns,), group in groupby(heapq.merge(*sources, key=_key), key=_key):
        cell = Span(max(int(start_ns), span.from_ns), min(int(start_ns) + cell_ns, span.to_ns))
        if len(lines) == _LINES_MAX:
            _refuse_lines(Span(lines[0].span.from_ns, cell.from_ns), span, cell_ns, subject)
        lines.append(_line(cell, group, weights))
    return lines


def _refuse_lines(fits: Span, span: Span, cell_ns: int, subject: Subject) -> NoReturn:
    other = "vm" if subject.vm_id is None else "session"
    raise BadSpan(
        f"--by bucket makes more than {_LINES_MAX:,} lines of {format_duration(cell_ns)} each"
        f" from {format_instant(fits.from_ns)} to {format_instant(span.to_ns)}.",
        f"Take a shorter span, as --from {format_instant(fits.from_ns)} --to {format_instant(fits.to_ns)},"
        f" or --by {other}.",
    )


def _cells(parts: Iterator[Part], cell_ns: int) -> Iterator[_Item]:
    for part in parts:
        start_ns = part.bucket_start_ns - part.bucket_start_ns % cell_ns
        yield _Item((start_ns,), part.vm_id, part.usage, False)


def _gap_cells(gaps: Iterable[Gap], span: Span, cell_ns: int) -> Iterator[_Item]:
    """The parts of all gaps, by cell: one at a time, for a gap may be decades long and a cell a minute.

    The gaps come by their start.
    """
    # The gaps that reach into the cell at hand or beyond, by their next part.
    open_gaps: list[tuple[int, int, Gap]] = []
    waiting = enumerate(gaps)
    number, gap = next(waiting, (0, None))
    while open_gaps or gap is not None:
        if gap is not None and (not open_gaps or gap.start_ns <= open_gaps[0][0]):
            heapq.heappush(open_gaps, (max(gap.start_ns, span.from_ns), number, gap))
            number, gap = next(waiting, (0, None))
            continue
        at_ns, nth, first = heapq.heappop(open_gaps)
        start_ns = at_ns - at_ns % cell_ns
        cell = Span(at_ns, min(start_ns + cell_ns, first.end_ns, span.to_ns))
        yield _Item((start_ns,), first.vm_id, gap_part(first, cell), True)
        if cell.to_ns < min(first.end_ns, span.to_ns):
            heapq.heappush(open_gaps, (cell.to_ns, nth, first))


def _line(span: Span, items: Iterable[_Item], weights: ScoreWeights) -> UsageLine:
    by_vm: dict[str, Usage] = defaultdict(Usage)
    across_gaps = Usage()
    for item in items:
        by_vm[item.vm_id] += item.usage
        if item.is_gap:
            across_gaps += item.usage
    scores = [resource_score(usage, usage.measured_ns + usage.gap_ns, weights) for usage in by_vm.values()]
    total = sum(by_vm.values(), Usage())
    return UsageLine(span, total, across_gaps, sum(scores, Decimal(0)))


def _session_key(row: Part | Gap) -> tuple[str | int, ...]:
    return row.vm_id, row.ordinal


def _key(item: _Item) -> tuple[str | int, ...]:
    return item.key


def memory_peak_bytes(usage: Usage) -> int:
    """The highest memory known: the highest sampled, or the mean where what was held from before is higher."""
    return max(usage.memory_peak_bytes, usage.memory_mean_bytes)
