"""The span of a report: half-open, from what was typed."""

from __future__ import annotations

from datetime import UTC, datetime

from billaged.ledger.views import Span
from billaged.model.time import DAY_NANOS, INT64_MAX, NANOS, format_instant, is_bare_date, parse_instant
from billaged.reports.errors import BadSpan

# Everything: no time the ledger can hold lies outside.
ALL_TIME = Span(-INT64_MAX - 1, INT64_MAX)


def month_so_far(from_text: str | None, to_text: str | None, now_ns: int) -> Span:
    """The span these texts mean; a missing end is the end of today, a missing beginning that end's month's.

    Both are RFC 3339 or dates, UTC where no offset is given. A bare date as the end
    includes that day.

    Raises:
        BadSpan: a text is no time, or the span is empty.
    """
    to_ns = (now_ns // DAY_NANOS + 1) * DAY_NANOS if to_text is None else _end(to_text)
    from_ns = _month_start(to_ns - 1) if from_text is None else _instant("--from", from_text)
    return _checked(from_ns, to_ns)


def bounded(from_text: str | None, to_text: str | None) -> Span:
    """As ``month_so_far``, but a side that is missing is open."""
    from_ns = ALL_TIME.from_ns if from_text is None else _instant("--from", from_text)
    to_ns = ALL_TIME.to_ns if to_text is None else _end(to_text)
    return _checked(from_ns, to_ns)


def _end(text: str) -> int:
    nanos = _instant("--to", text)
    return nanos + DAY_NANOS if is_bare_date(text) else nanos


def _instant(option: str, text: str) -> int:
    try:
        nanos = parse_instant(text)
    except ValueError as error:
        raise BadSpan(f"{option}: {error}.") from None
    # A day is left, for the end of a bare date.
    if not -INT64_MAX <= nanos <= INT64_MAX - DAY_NANOS:
        raise BadSpan(f"{option}: {text} does not fit 64 bits of nanoseconds.", "Take a year from 1678 to 2261.")
    return nanos


def _checked(from_ns: int, to_ns: int) -> Span:
    if from_ns >= to_ns:
        raise BadSpan(
            f"--from {format_instant(from_ns)} is not before --to {format_instant(to_ns)}.",
            "Spans are half-open: [from, to).",
        )
    return Span(from_ns, to_ns)


def _month_start(nanos: int) -> int:
    moment = datetime.fromtimestamp(nanos // NANOS, UTC)
    return int(datetime(moment.year, moment.month, 1, tzinfo=UTC).timestamp()) * NANOS
