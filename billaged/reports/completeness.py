"""How much of a life was measured: lifetime = measured + gap, to the nanosecond, and what is pending beside it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Self

from billaged.ledger.views import Session, Span
from billaged.model.time import format_instant
from billaged.reports.errors import ProofFailed
from billaged.reports.vms import pending_ns

_DECIMALS: Final = 6


@dataclass(frozen=True, slots=True)
class Account:
    """What became of a VM's time in a span; of several VMs, the sum of theirs. Nanoseconds, and counts.

    ``lifetime_ns`` is what the sessions say, ``measured_ns`` what the buckets and ``gap_ns``
    what the gaps: three sources, and ``check`` holds them together. ``pending_ns`` is in none.
    """

    lifetime_ns: int = 0
    measured_ns: int = 0
    gap_ns: int = 0
    pending_ns: int = 0
    samples: int = 0
    anomalies: int = 0

    def __add__(self, other: Self) -> Account:
        return Account(
            self.lifetime_ns + other.lifetime_ns,
            self.measured_ns + other.measured_ns,
            self.gap_ns + other.gap_ns,
            self.pending_ns + other.pending_ns,
            self.samples + other.samples,
            self.anomalies + other.anomalies,
        )

    @property
    def percent(self) -> Decimal | None:
        """How much of the lifetime was measured, rounded down: 100 only where nothing is missing. None without life."""
        return percent_of(self.measured_ns, self.lifetime_ns, _DECIMALS)

    def check(self, vm_id: str, span: Span) -> None:
        """
        Raises:
            ProofFailed: measured and gap are not the lifetime.
        """
        if self.measured_ns + self.gap_ns != self.lifetime_ns:
            raise ProofFailed(
                f"the ledger does not add up for VM {vm_id} from {format_instant(span.from_ns)}"
                f" to {format_instant(span.to_ns)}: {self.measured_ns} ns measured and {self.gap_ns} ns of gaps"
                f" are not {self.lifetime_ns} ns of lifetime.",
                "Find what is damaged with `billaged verify`.",
            )


def percent_of(part: int, whole: int, decimals: int) -> Decimal | None:
    """Rounded down to this many decimals; None where there is no whole."""
    if whole == 0:
        return None
    return Decimal(part * 10 ** (decimals + 2) // whole).scaleb(-decimals)


def overlap_ns(span: Span, from_ns: int, to_ns: int) -> int:
    """How long [from, to) is inside the span."""
    return max(0, min(span.to_ns, to_ns) - max(span.from_ns, from_ns))


def accounted(session: Session) -> Span:
    """The part of a session's life that is measured or a gap: up to its end, or its newest sample while it runs."""
    return Span(session.start_ns, session.last_ns if session.end_ns is None else session.end_ns)


def time_account(session: Session, span: Span, now_ns: int) -> Account:
    """The session's lifetime in the span, and what is pending in it now."""
    silent_ns = pending_ns(session, now_ns)
    return Account(
        lifetime_ns=overlap_ns(span, *accounted(session)),
        pending_ns=overlap_ns(span, session.last_ns, session.last_ns + silent_ns),
    )
