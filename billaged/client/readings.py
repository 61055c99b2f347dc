"""What a source of usage reports, and the records it becomes."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from billaged.client.segment import SpoolRecord
from billaged.model.records import Kind
from billaged.model.time import NANOS
from billaged.wire.billing.v1 import billing_pb2 as pb


class Reading(NamedTuple):
    """One sample: time in ns since the epoch, memory in bytes, and cumulative counters in ns and bytes."""

    time_ns: int
    memory_bytes: int
    cpu_time_ns: int
    disk_read_bytes: int
    disk_write_bytes: int
    network_rx_bytes: int
    network_tx_bytes: int


class Observation(NamedTuple):
    """What was seen of one VM at one tick. A start and a stop are only what was seen happening."""

    vm_id: str
    reading: Reading | None = None
    started_ns: int | None = None
    stopped_ns: int | None = None


class Source(Protocol):
    """Something that is metered."""

    def observe(self) -> list[Observation]:
        """Read everything now; each VM at most once."""

    def spooled(self) -> None:
        """Told once what ``observe`` last returned is durable."""

    def exhausted(self) -> bool:
        """Whether nothing more can ever come."""


def metrics_record(vm_id: str, customer_id: str, reading: Reading) -> SpoolRecord:
    metrics = pb.VMMetrics(
        cpu_time_nanos=reading.cpu_time_ns,
        memory_usage_bytes=reading.memory_bytes,
        disk_read_bytes=reading.disk_read_bytes,
        disk_write_bytes=reading.disk_write_bytes,
        network_rx_bytes=reading.network_rx_bytes,
        network_tx_bytes=reading.network_tx_bytes,
    )
    metrics.timestamp.seconds, metrics.timestamp.nanos = divmod(reading.time_ns, NANOS)
    request = pb.SendMetricsBatchRequest(vm_id=vm_id, customer_id=customer_id, metrics=[metrics])
    return SpoolRecord(Kind.METRICS, request.SerializeToString())


def started_record(vm_id: str, customer_id: str, start_ns: int) -> SpoolRecord:
    request = pb.NotifyVmStartedRequest(vm_id=vm_id, customer_id=customer_id, start_time=start_ns)
    return SpoolRecord(Kind.STARTED, request.SerializeToString())


def stopped_record(vm_id: str, stop_ns: int) -> SpoolRecord:
    return SpoolRecord(Kind.STOPPED, pb.NotifyVmStoppedRequest(vm_id=vm_id, stop_time=stop_ns).SerializeToString())


def possible_gap_record(vm_id: str, last_sent_ns: int, resume_ns: int) -> SpoolRecord:
    request = pb.NotifyPossibleGapRequest(vm_id=vm_id, last_sent=last_sent_ns, resume_time=resume_ns)
    return SpoolRecord(Kind.POSSIBLE_GAP, request.SerializeToString())
