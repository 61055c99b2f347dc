"""The stages behind the doors, small: an intake that keeps what it is given, a feed that tests fill."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection

from billaged.doors.connections import Connections
from billaged.doors.gate import Gate
from billaged.doors.http_admission import HttpAdmission
from billaged.doors.rate import Limiter
from billaged.identity.names import PLAINTEXT
from billaged.identity.policy import Policy
from billaged.model.errors import Overloaded
from billaged.model.records import Kind, Record
from billaged.telemetry.audit import Audit
from billaged.wire.billing.v1 import billing_pb2 as pb
from billaged.wire.billing.v1.usage_stream_pb2 import UsageSummary

SECONDS = 1_763_712_000


class KnownOwners:
    """Who pays for which VM, as a test says."""

    def __init__(self, **customer_of: str) -> None:
        self.customers = customer_of

    def running_customer(self, vm_id: str) -> str | None:
        return self.customers.get(vm_id)

    async def customer_of(self, vm_id: str) -> str | None:
        return self.customers.get(vm_id)


def open_gate(policy: Policy | None = None, owners: KnownOwners | None = None, audit: Audit | None = None) -> Gate:
    """A gate without limits; without a policy everybody may do everything."""
    chosen = policy or Policy.everything()
    return Gate(
        lambda: chosen,
        Limiter(0, 0, monotonic_nanos=time.monotonic_ns),
        Connections(0, still_open=set, monotonic_nanos=time.monotonic_ns),
        audit or Audit(time.monotonic_ns),
        owners or KnownOwners(),
    )


def open_admission() -> HttpAdmission:
    """Everybody may do everything over HTTP."""
    return HttpAdmission(open_gate(), lambda scope: PLAINTEXT)


class RecordingIntake:
    """Keeps records; raises ``error`` if one is set; waits for ``gate`` if one is set."""

    def __init__(self) -> None:
        self.items_max = {Kind.METRICS: 100_000, Kind.HEARTBEAT: 100_000}
        self.taken: list[tuple[Record, bytes, str]] = []
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.waiting = 0

    async def submit(self, record: Record, payload: bytes, caller: str) -> None:
        if self.gate is not None:
            self.waiting += 1
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.taken.append((record, payload, caller))


class FilledFeed:
    """A bounded queue for each watcher, as the contract of SummaryFeed wants it."""

    def __init__(self, queue_max: int = 1000) -> None:
        self.queue_max = queue_max
        self.queues: list[asyncio.Queue[UsageSummary | Exception | None]] = []
        self.filters: list[tuple[list[str], list[str]]] = []

    async def watch(self, customer_ids: Collection[str], vm_ids: Collection[str]) -> AsyncIterator[UsageSummary]:
        queue: asyncio.Queue[UsageSummary | Exception | None] = asyncio.Queue()
        self.queues.append(queue)
        self.filters.append((list(customer_ids), list(vm_ids)))
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.queues.remove(queue)

    def put(self, summary: UsageSummary) -> None:
        for queue in self.queues:
            if queue.qsize() >= self.queue_max:
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(Overloaded(f"cut off: {self.queue_max} summaries behind"))
            else:
                queue.put_nowait(summary)

    def end(self) -> None:
        for queue in self.queues:
            queue.put_nowait(None)


def batch(*seconds: int, vm_id: str = "vm-1", customer_id: str = "customer-1") -> pb.SendMetricsBatchRequest:
    """A batch with one sample at each of these seconds after a fixed time."""
    request = pb.SendMetricsBatchRequest(vm_id=vm_id, customer_id=customer_id)
    for second in seconds:
        metrics = request.metrics.add(cpu_time_nanos=second * 10**9, memory_usage_bytes=2**30)
        metrics.timestamp.seconds = SECONDS + second
    return request


async def until(condition: Callable[[], bool], what: str, within_seconds: float = 10.0) -> None:
    """Let the loop go on until the condition holds.

    Raises:
        TimeoutError: it does not.
    """
    deadline = time.monotonic() + within_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_seconds} s: {what}")
        await asyncio.sleep(0.005)
