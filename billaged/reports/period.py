"""The period of a bill: a month, a day, or from one of them through another, UTC."""

from __future__ import annotations

import re
from typing import Final

from billaged.ledger.views import Span
from billaged.model.time import DAY_NANOS, INT64_MAX, format_instant, is_bare_date, parse_instant
from billaged.reports.errors import BadSpan

_MONTH: Final = re.compile(r"(\d{4})-(\d\d)", re.ASCII)
_HINT: Final = "Write it like 2026-11, 2026-11-15, 2026-11-01..2026-11-15, 2026-10..2026-11, last-month or yesterday."
# For commands that a timer runs: seen from now, the month or day so many before it.
_MONTHS_AGO: Final = {"this-month": 0, "last-month": 1}
_DAYS_AGO: Final = {"today": 0, "yesterday": 1}


def period(text: str, now_ns: int = 0) -> Span:
    """The span that ``2026-11`` or ``2026-11-01..2026-11-15`` means: half-open, the last month or day in it.

    A side of ``..`` may also be an instant (RFC 3339); as the end it is not in the span. ``last-month``,
    ``yesterday`` and the like are those of ``now_ns``.

    Raises:
        BadSpan: the text is no period, or an empty one.
    """
    first, dots, last = (_dated(side, now_ns) for side in text.partition(".."))
    from_ns, to_ns = _span_of(first)
    if dots:
        to_ns = _span_of(last)[1]
    elif from_ns == to_ns:
        raise BadSpan(f"--period: {text} is an instant.", _HINT)
    if from_ns >= to_ns:
        raise BadSpan(f"--period: {format_instant(from_ns)} is not before {format_instant(to_ns)}.", _HINT)
    return Span(from_ns, to_ns)


def _dated(text: str, now_ns: int) -> str:
    """A month or a day that is named from now, by its date; everything else as it is."""
    name = text.strip().lower()
    if name in _DAYS_AGO:
        return format_instant(now_ns - _DAYS_AGO[name] * DAY_NANOS)[: len("2026-11-15")]
    if name in _MONTHS_AGO:
        year, month = map(int, format_instant(now_ns).split("-")[:2])
        year, month_before = divmod(year * 12 + month - 1 - _MONTHS_AGO[name], 12)
        return f"{year:04}-{month_before + 1:02}"
    return text


def _span_of(text: str) -> Span:
    """A month's or a day's span; an instant's is empty."""
    try:
        if (month := _MONTH.fullmatch(text.strip())) is not None:
            year, number = int(month[1]), int(month[2])
            next_year, next_number = (year + 1, 1) if number == 12 else (year, number + 1)
            span = Span(parse_instant(f"{text.strip()}-01"), parse_instant(f"{next_year:04}-{next_number:02}-01"))
        else:
            nanos = parse_instant(text)
            span = Span(nanos, nanos + DAY_NANOS if is_bare_date(text) else nanos)
    except ValueError:
        raise BadSpan(f"--period: {text!r} is no month, day or time.", _HINT) from None
    if not -INT64_MAX <= span.from_ns <= span.to_ns <= INT64_MAX:
        raise BadSpan(f"--period: {text} does not fit 64 bits of nanoseconds.", "Take a year from 1678 to 2261.")
    return span
