"""Quantities and times as people read them. Rounded; what must be exact is in JSON and CSV."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Final

from billaged.model.quantity import GIB
from billaged.model.time import HOUR_NANOS, NANOS, format_duration, format_instant

# Enough digits that the division rounds nothing before the sixth decimal.
_CONTEXT: Final = Context(prec=60)
_BYTE_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB")


def human_bytes(amount: int) -> str:
    """``0 B``, ``512 B``, ``1.50 GiB``."""
    if amount < 1024:
        return f"{amount} B"
    value, power = Decimal(amount) / 1024, 0
    while value >= 1000 and power < len(_BYTE_UNITS) - 1:
        value, power = value / 1024, power + 1
    return f"{value:,.2f} {_BYTE_UNITS[power]}"


def human_duration(nanos: int) -> str:
    """``59m3s``: whole seconds; below one, milliseconds; below that, as it is."""
    for unit in (NANOS, 1_000_000):
        if abs(nanos) >= unit:
            return format_duration((nanos + unit // 2) // unit * unit)
    return format_duration(nanos)


def human_seconds(nanos: int) -> str:
    """``7,200.00 s``: to a hundredth, half away from zero. In integers: a fleet's month is too much for a float."""
    hundredths = (abs(nanos) + NANOS // 200) // (NANOS // 100)
    sign = "-" if nanos < 0 and hundredths else ""
    return f"{sign}{hundredths // 100:,}.{hundredths % 100:02} s"


def human_instant(nanos: int) -> str:
    """``2026-11-21 10:00:00``, UTC, without fractions of a second."""
    return format_instant(nanos // NANOS * NANOS).replace("T", " ").removesuffix("Z")


def gib_hours(memory_byte_nanos: int) -> Decimal:
    """Memory x time in GiB-hours (2**30 bytes), six decimals, half away from zero."""
    exact = _CONTEXT.divide(Decimal(memory_byte_nanos), Decimal(GIB * HOUR_NANOS))
    return exact.quantize(Decimal("0.000001"), rounding=ROUND_HALF_UP, context=_CONTEXT)
