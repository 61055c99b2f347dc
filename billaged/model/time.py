"""Time: int64 nanoseconds since the Unix epoch, UTC; intervals are half-open."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

NANOS: Final = 1_000_000_000
MINUTE_NANOS: Final = 60 * NANOS
HOUR_NANOS: Final = 3_600 * NANOS
DAY_NANOS: Final = 86_400 * NANOS

INT64_MAX: Final = 2**63 - 1

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    """What the daemon asks for the time; the fold never does, it is told."""

    def wall_nanos(self) -> int:
        """Nanoseconds since the Unix epoch, as the machine believes."""

    def monotonic_nanos(self) -> int:
        """Nanoseconds that only ever go forward, from an arbitrary start."""


_UNIT_NANOS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": NANOS,
    "m": 60 * NANOS,
    "h": 3_600 * NANOS,
}
_DURATION_PART: Final = re.compile(r"(\d+)(?:\.(\d+))?(ns|us|µs|ms|s|m|h)")


def parse_duration(text: str) -> int:
    """Nanoseconds of a Go-style duration: ``60s``, ``1h30m``, ``1.5h``, ``250ms``.

    Raises:
        ValueError: the text is none; the message says what one looks like.
    """
    total, position = 0, 0
    for part in _DURATION_PART.finditer(text):
        if part.start() != position:
            break
        whole, fraction, unit = part.groups()
        nanos = _UNIT_NANOS[unit]
        total += int(whole) * nanos
        if fraction:
            total += int(fraction) * nanos // 10 ** len(fraction)
        position = part.end()
    if not text or position != len(text):
        raise ValueError(f"{text!r} is not a duration; write it like 60s, 15m, 1h30m or 250ms")
    if total > INT64_MAX:
        raise ValueError(f"{text!r} is longer than 292 years")
    return total


def format_duration(nanos: int) -> str:
    """The Go-style text of a duration: the shortest exact form, ``15m``, ``1h30m``, ``1.5s``."""
    if nanos < 0:
        return "-" + format_duration(-nanos)
    if nanos == 0:
        return "0s"
    hours, rest = divmod(nanos, HOUR_NANOS)
    minutes, rest = divmod(rest, MINUTE_NANOS)
    text = (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes else "")
    if rest:
        if not text and rest < NANOS:
            for unit in ("ms", "us", "ns"):
                if rest % _UNIT_NANOS[unit] == 0:
                    return f"{rest // _UNIT_NANOS[unit]}{unit}"
        seconds, fraction = divmod(rest, NANOS)
        text += f"{seconds}" + (f".{fraction:09d}".rstrip("0") if fraction else "") + "s"
    return text


def exact_seconds(nanos: int) -> str:
    """Seconds as a decimal number, to the nanosecond: a float would lose some."""
    sign, nanos = ("-", -nanos) if nanos < 0 else ("", nanos)
    seconds, rest = divmod(nanos, NANOS)
    return f"{sign}{seconds}" + (f".{rest:09d}".rstrip("0") if rest else "")


def format_instant(nanos: int) -> str:
    """RFC 3339 in UTC with as many digits as are needed: ``2026-11-21T10:00:00.5Z``."""
    seconds, fraction = divmod(nanos, NANOS)
    text = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    return text + (f".{fraction:09d}".rstrip("0") if fraction else "") + "Z"


_INSTANT: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?)?", re.ASCII
)


def parse_instant(text: str) -> int:
    """Nanoseconds since the epoch of an RFC 3339 instant or a date; UTC where no offset is given.

    Raises:
        ValueError: the text is none; the message says what one looks like.
    """
    match = _INSTANT.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError
        date, clock, fraction, offset = match.groups()
        moment = datetime.fromisoformat(f"{date}T{clock or '00:00'}{(offset or 'Z').replace('Z', '+00:00')}")
    except ValueError:
        raise ValueError(f"{text!r} is not a time; write it like 2026-11-21 or 2026-11-21T10:00:00Z") from None
    seconds = (moment - _EPOCH) // timedelta(seconds=1)
    return seconds * NANOS + int((fraction or "").ljust(9, "0"))


def is_bare_date(text: str) -> bool:
    """Whether the text names a whole day rather than an instant."""
    match = _INSTANT.fullmatch(text.strip())
    return match is not None and match.group(2) is None
