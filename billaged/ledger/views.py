"""What the reader hands out. Times are nanoseconds since the epoch, spans half-open."""

from __future__ import annotations

from typing import Literal, NamedTuple

from billaged.model.quantity import Usage

# What sums are kept apart by, beside the VM.
Grouping = Literal["vm", "session", "bucket"]


class Span(NamedTuple):
    """Half-open, nanoseconds since the epoch."""

    from_ns: int
    to_ns: int


class Subject(NamedTuple):
    """Whose rows are asked for; what is None does not restrict."""

    vm_id: str | None = None
    customer_id: str | None = None


class LedgerPosition(NamedTuple):
    """Which journal the ledger was folded from, and how far."""

    journal_id: str
    sequence: int


class Session(NamedTuple):
    """A VM's session. ``last_ns`` is its newest sample, or its start where ``samples`` is 0."""

    vm_id: str
    ordinal: int
    customer_id: str
    start_ns: int
    explicit: bool
    last_ns: int
    end_ns: int | None
    end_kind: str | None
    samples: int
    measured_ns: int
    gap_ns: int


class Gap(NamedTuple):
    """A closed gap, and the counters billed across it (``usage.gap_ns`` is its length)."""

    vm_id: str
    ordinal: int
    start_ns: int
    end_ns: int
    kind: str
    customer_id: str
    usage: Usage
    sequence: int


class ReportedGap(NamedTuple):
    """A gap that a sender spoke of. No customer where the VM had no session then."""

    vm_id: str
    last_sent_ns: int
    resume_ns: int
    sequence: int
    customer_id: str | None


class Silence(NamedTuple):
    """When and why a VM was not heard: all VMs where the id is empty. No end while it still is not."""

    vm_id: str
    start_ns: int
    reason: str
    end_ns: int | None
    sequence: int


class Outside(NamedTuple):
    """The time after a session that ended unseen, up to the VM's next one; no end where there is none yet."""

    vm_id: str
    ordinal: int
    customer_id: str
    # How the session ended: missed_stop or vanished.
    end_kind: str
    start_ns: int
    end_ns: int | None


class Part(NamedTuple):
    """Measured usage of one VM. What it was not grouped by is 0."""

    vm_id: str
    ordinal: int
    bucket_start_ns: int
    usage: Usage
