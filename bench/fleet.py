"""A fleet of VMs whose counters rise: its requests as bytes, and as the journal's entries."""

from __future__ import annotations

from collections.abc import Iterable

from billaged.model.records import JournalEntry, Kind
from billaged.model.time import NANOS
from billaged.wire import codec
from billaged.wire.billing.v1 import billing_pb2 as pb

CALLER = "bench"
_CUSTOMERS = 100


class Fleet:
    """``vms`` VMs of 100 customers. Samples lie ``step_ns`` apart, the first at ``start_ns``."""

    def __init__(self, vms: int, start_ns: int, step_ns: int = NANOS) -> None:
        self.vms = vms
        self._start_ns = start_ns
        self._step_ns = step_ns

    def vm_id(self, vm: int) -> str:
        return f"vm-{vm:06d}"

    def sample(self, vm: int, nth: int) -> bytes:
        """SendMetricsBatch with the VM's ``nth`` sample: half a core, some disk and network."""
        time_ns = self._start_ns + nth * self._step_ns
        request = pb.SendMetricsBatchRequest(vm_id=self.vm_id(vm), customer_id=f"customer-{vm % _CUSTOMERS}")
        metrics = request.metrics.add(
            cpu_time_nanos=10**12 + nth * self._step_ns // 2 + vm,
            memory_usage_bytes=(1 << 30) + (nth % 16 << 20),
            disk_read_bytes=10**9 + nth * 40_960,
            disk_write_bytes=10**9 + nth * 81_920,
            network_rx_bytes=10**9 + nth * 150_000,
            network_tx_bytes=10**9 + nth * 50_000,
        )
        metrics.timestamp.FromNanoseconds(time_ns)
        return request.SerializeToString()

    def start(self, vm: int) -> bytes:
        """NotifyVmStarted, one step before the first sample."""
        request = pb.NotifyVmStartedRequest(
            vm_id=self.vm_id(vm), customer_id=f"customer-{vm % _CUSTOMERS}", start_time=self._start_ns - self._step_ns
        )
        return request.SerializeToString()


class Journaled:
    """Entries as the journal writer hands them to the fold: numbered, with payload and decoded record."""

    def __init__(self, position: int = 0, received_ns: int = 0) -> None:
        self.position = position
        self._received_ns = received_ns

    def entries(self, kind: Kind, payloads: Iterable[bytes]) -> list[JournalEntry]:
        made = [
            JournalEntry(sequence, kind, self._received_ns, CALLER, payload, codec.decode(kind, payload))
            for sequence, payload in enumerate(payloads, self.position + 1)
        ]
        self.position += len(made)
        return made
