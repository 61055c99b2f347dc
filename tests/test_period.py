"""Periods that a timer's command names: seen from now, in UTC."""

from __future__ import annotations

import pytest

from billaged.model.time import parse_instant
from billaged.reports.errors import BadSpan
from billaged.reports.period import period


@pytest.mark.parametrize(
    ("name", "now", "same_as"),
    [
        ("last-month", "2026-11-21T16:00:00Z", "2026-10"),
        ("last-month", "2026-01-01T00:00:00Z", "2025-12"),
        # A nanosecond before midnight it is still the old month.
        ("last-month", "2025-12-31T23:59:59.999999999Z", "2025-11"),
        ("this-month", "2026-12-31T23:59:59Z", "2026-12"),
        ("today", "2026-03-01T00:00:00Z", "2026-03-01"),
        ("yesterday", "2024-03-01T00:30:00Z", "2024-02-29"),
        (" Yesterday ", "2026-01-01T00:30:00Z", "2025-12-31"),
        ("last-month..yesterday", "2026-11-21T16:00:00Z", "2026-10..2026-11-20"),
        ("2026-11-01..today", "2026-11-21T16:00:00Z", "2026-11-01..2026-11-21"),
    ],
)
def test_a_period_named_from_now_is_that_of_its_date(name: str, now: str, same_as: str) -> None:
    assert period(name, parse_instant(now)) == period(same_as)


@pytest.mark.parametrize("name", ["tomorrow", "last month", "last-year", "", "yesterday..last-month"])
def test_what_names_no_period_is_refused(name: str) -> None:
    with pytest.raises(BadSpan):
        period(name, parse_instant("2026-11-21T16:00:00Z"))
