"""Durations of single customers: ``acme=30m,batch-co=2h``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from billaged.model.ids import why_not_id
from billaged.model.time import format_duration
from billaged.settings.kinds import Duration, Kind, shown

_CUSTOMERS_MAX: Final = 1_000


@dataclass(frozen=True)
class CustomerDurations(Kind):
    """Nanoseconds for some customers, each once: ``acme=30m,batch-co=2h``. Held sorted by the customer's id."""

    low: str
    high: str

    @property
    def values(self) -> str:
        return f"customer=duration with commas between, at most {_CUSTOMERS_MAX:,}, each {self._duration.values}"

    def read(self, text: str) -> tuple[tuple[str, int], ...]:
        return tuple(map(self._read_entry, text.split(",")))

    def check(self, value: tuple[tuple[str, int], ...] | None) -> tuple[tuple[str, int], ...] | None:
        if value is None:
            return None
        if not 1 <= len(value) <= _CUSTOMERS_MAX:
            raise ValueError(f"names {len(value):,} customers; it takes 1 to {_CUSTOMERS_MAX:,}")
        seen: set[str] = set()
        for customer_id, nanos in value:
            entry = f"{customer_id}={format_duration(nanos)}"
            if (why_not := why_not_id(customer_id)) is not None:
                raise ValueError(f"{shown(entry)} names no customer: the id {why_not}; write it like acme=30m")
            if customer_id in seen:
                raise ValueError(f"{shown(entry)} is the second for {shown(customer_id)}; name each customer once")
            seen.add(customer_id)
            self._of_entry(entry, self._duration.check, nanos)
        return tuple(sorted(value))

    def write(self, value: tuple[tuple[str, int], ...]) -> str:
        return ",".join(f"{customer_id}={format_duration(nanos)}" for customer_id, nanos in value)

    @property
    def _duration(self) -> Duration:
        return Duration(self.low, self.high)

    def _read_entry(self, text: str) -> tuple[str, int]:
        # An id may not hold the sign; whatever has it twice is told to have a bad id, not a bad duration.
        customer_id, sign, duration = text.strip().rpartition("=")
        if not sign:
            raise ValueError(f"{shown(text.strip())} is no entry; write it like acme=30m, with commas between")
        return customer_id.strip(), self._of_entry(text.strip(), self._duration.read, duration.strip())

    @staticmethod
    def _of_entry(entry: str, act: Callable[[Any], Any], value: object) -> Any:
        """What that gives.

        Raises:
            ValueError: what was wrong, and with which entry.
        """
        try:
            return act(value)
        except ValueError as error:
            raise ValueError(f"{shown(entry)}: {error}") from None
