"""The intake: what the doors call, and the daemon's own records go through."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, Protocol

from billaged.intake.clock import ClockWatch
from billaged.intake.validation import Limits, validate
from billaged.intake.writer import JournalWriter, Waiting
from billaged.model.errors import NotServing, Overloaded, WrongOwner
from billaged.model.records import FoldRules, Kind, MetricsBatch, Record, Resumed, Tick, VmStarted
from billaged.wire import codec

# What names a customer.
_OWNED: Final = (MetricsBatch, VmStarted)
# How long a request that seems to have the wrong owner waits for what came before it to be folded.
_SETTLE_SECONDS: Final = 5.0
_SETTLE_POLL_SECONDS: Final = 0.005
_LOOK_UPS_MAX: Final = 64


class Fold(Protocol):
    """What the intake asks of the stage behind it."""

    @property
    def folded_entries(self) -> int:
        """Entries folded since the start, of those this intake handed on."""

    @property
    def folded_bytes(self) -> int:
        """The bytes of their payloads."""

    def owner_of(self, vm_id: str) -> str | None: ...

    def last_owner_of(self, vm_id: str) -> str | None:
        """May take its time: called in a thread."""

    def knows(self, vm_id: str) -> bool: ...

    def known_vms(self) -> int: ...


class Follower(Protocol):
    """Who follows a request's record on its way. Called by the task that answers the request."""

    def handed_over(self, number: int) -> None:
        """Its record goes to the journal now. Numbers count an intake's records from 1 on; they are folded in order."""

    def durable(self) -> None:
        """It is in the journal."""


class Intake:
    """Lives on the event loop: every method but the constructor is called there."""

    def __init__(
        self,
        writer: JournalWriter,
        fold: Fold,
        clock: ClockWatch,
        limits: Limits,
        queue_max_records: int,
        queue_max_bytes: int,
        max_vms: int,
        follower: Follower | None = None,
    ) -> None:
        self._writer = writer
        self._fold = fold
        self._clock = clock
        self._limits = limits
        self._queue_max_records = queue_max_records
        self._queue_max_bytes = queue_max_bytes
        self._max_vms = max_vms
        self._follower = follower
        self._refusing: str | None = "billaged is starting"
        self._disk_full: str | None = None
        # Since when, by the wall clock.
        self._disk_full_since_ns = 0
        # Records handed to the writer since the start.
        self._submitted = 0
        # Bytes of their payloads.
        self._submitted_bytes = 0
        # Requests that wait to hear whose a VM is.
        self._looking_up = 0

    @property
    def items_max(self) -> Mapping[Kind, int]:
        """How many items a request's list may hold (``doors.ports.Intake``)."""
        limits = self._limits
        return {Kind.METRICS: limits.max_samples_per_batch, Kind.HEARTBEAT: limits.max_active_vms_per_heartbeat}

    async def submit(self, record: Record, payload: bytes, caller: str) -> None:
        """Validate, journal, return once it is durable (``doors.ports.Intake``)."""
        if self._refusing is not None:
            raise NotServing(self._refusing)
        now = self._clock.now()
        validate(record, self._limits, now)
        if self._disk_full is not None:
            raise Overloaded(self._disk_full, 30.0)
        if isinstance(record, _OWNED):
            owner = self._fold.owner_of(record.vm_id)
            if owner != record.customer_id:
                if owner is not None:
                    await self._refuse_wrong_owner(record)
                elif self._fold.known_vms() >= self._max_vms and not self._fold.knows(record.vm_id):
                    raise Overloaded(f"{self._max_vms} VMs are known already (UNKEY_BILLAGED_MAX_VMS)", 60.0)
        if self._refusing is not None:
            # It began to stop while this waited.
            raise NotServing(self._refusing)
        if self.in_flight >= self._queue_max_records or self.in_flight_bytes + len(payload) > self._queue_max_bytes:
            raise Overloaded("too many requests are in flight; send again in a moment")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = Waiting(codec.kind_of(record), now.wall_ns, caller, payload, record, done)
        if self._follower is None:
            self._hand_over(waiting)
            await done
            return
        # Before it goes: it could be folded before it is heard of.
        self._follower.handed_over(self._submitted + 1)
        self._hand_over(waiting)
        await done
        self._follower.durable()

    def running_customer(self, vm_id: str) -> str | None:
        """Who pays for a VM, as far as is known at this moment (``doors.gate.Owners``)."""
        return self._fold.owner_of(vm_id)

    async def customer_of(self, vm_id: str) -> str | None:
        """Who pays for a VM, or paid last, once all that came before is folded (``doors.gate.Owners``)."""
        if (owner := self._fold.owner_of(vm_id)) is not None:
            return owner
        if self._looking_up >= _LOOK_UPS_MAX:
            raise Overloaded("too many VMs that are not running are being looked up")
        self._looking_up += 1
        try:
            await self._settle()
            return await asyncio.to_thread(self._fold.last_owner_of, vm_id)
        finally:
            self._looking_up -= 1

    async def _refuse_wrong_owner(self, record: MetricsBatch | VmStarted) -> None:
        """Another customer's, it seems: certain once everything that came before is folded."""
        await self._settle()
        if self._fold.owner_of(record.vm_id) not in (None, record.customer_id):
            raise WrongOwner(record.vm_id)

    async def _settle(self) -> None:
        """Wait until everything that came before is folded. Raises Overloaded if that takes too long."""
        before = self._submitted
        deadline = asyncio.get_running_loop().time() + _SETTLE_SECONDS
        while self._fold.folded_entries < before:
            if asyncio.get_running_loop().time() > deadline:
                raise Overloaded("the fold is behind; send again in a moment")
            await asyncio.sleep(_SETTLE_POLL_SECONDS)

    def submit_own(self, record: Tick | FoldRules | Resumed) -> None:
        """Journal one of the daemon's own records; it is folded in its place."""
        now = self._clock.now()
        payload = codec.encode_own(record)
        self._hand_over(Waiting(codec.kind_of(record), now.wall_ns, "", payload, record, None))

    def _hand_over(self, waiting: Waiting) -> None:
        self._submitted += 1
        self._submitted_bytes += len(waiting.payload)
        self._writer.put(waiting)

    @property
    def in_flight(self) -> int:
        """Records that are journaled or on their way, and not yet folded."""
        return self._submitted - self._fold.folded_entries

    @property
    def in_flight_bytes(self) -> int:
        return self._submitted_bytes - self._fold.folded_bytes

    @property
    def serving(self) -> bool:
        return self._refusing is None

    @property
    def taking(self) -> bool:
        """Whether requests are taken: serving, and the disk has room."""
        return self._refusing is None and self._disk_full is None

    def open(self) -> None:
        """Take requests from now on."""
        self._refusing = None

    def close(self, reason: str) -> None:
        """Take no more requests."""
        self._refusing = reason

    def disk_is_full(self, reason: str | None) -> None:
        """Refuse with this reason until it is None again; reads go on. How long it was is journaled."""
        if reason is not None and self._disk_full is None:
            self._disk_full_since_ns = self._clock.now().wall_ns
        elif reason is None and self._disk_full is not None:
            self.resumed_after(self._disk_full_since_ns)
        self._disk_full = reason

    def resumed_after(self, down_from_ns: int) -> None:
        """Journal that nothing was taken from then until now, unless the clock says that there was no such time."""
        up_ns = self._clock.now().wall_ns
        if up_ns > down_from_ns:
            self.submit_own(Resumed(down_from_ns, up_ns))
