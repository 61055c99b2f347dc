"""What the auditor reads: one event for each journal row, in journal order, as plain values.

Times are int nanoseconds since the epoch, CPU time is nanoseconds, memory, disk and network are bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS
HOUR_NS = 60 * MINUTE_NS
DAY_NS = 24 * HOUR_NS

COUNTER_NAMES = ("cpu_time_ns", "disk_read_bytes", "disk_write_bytes", "network_rx_bytes", "network_tx_bytes")


class Sample(NamedTuple):
    time_ns: int
    memory_bytes: int
    cpu_time_ns: int
    disk_read_bytes: int
    disk_write_bytes: int
    network_rx_bytes: int
    network_tx_bytes: int

    @property
    def values(self) -> tuple[int, ...]:
        """Everything but the time: what makes two samples of one time equal."""
        return self[1:]

    @property
    def counters(self) -> tuple[int, ...]:
        """The five counters, in the order of ``COUNTER_NAMES``."""
        return self[2:]


class Batch(NamedTuple):
    vm_id: str
    customer_id: str
    # Any seven ints in the order of ``Sample`` will do.
    samples: Sequence[tuple[int, ...]]


class Started(NamedTuple):
    vm_id: str
    customer_id: str
    start_ns: int


class Stopped(NamedTuple):
    vm_id: str
    stop_ns: int


class Heartbeat(NamedTuple):
    instance_id: str
    active_vms: tuple[str, ...]


class PossibleGap(NamedTuple):
    vm_id: str
    last_sent_ns: int
    resume_ns: int


class Tick(NamedTuple):
    time_ns: int
    length_ns: int
    closes_interval: bool


class Rules(NamedTuple):
    gap_threshold_ns: int = 15 * MINUTE_NS
    bucket_ns: int = HOUR_NS
    vanish_after_ns: int = HOUR_NS
    max_cores: int = 256
    # 10^9 bytes a second, so bytes a nanosecond.
    max_gigabytes_per_second: int = 50
    # Customers with a gap threshold of their own, each with that.
    gap_thresholds: tuple[tuple[str, int], ...] = ()

    def for_customer(self, customer_id: str) -> Rules:
        """The rules that this customer's VMs are billed by."""
        return self._replace(
            gap_threshold_ns=dict(self.gap_thresholds).get(customer_id, self.gap_threshold_ns), gap_thresholds=()
        )

    def with_thresholds_at_most(self, nanos: int) -> Rules:
        """The same rules with no gap threshold beyond that."""
        apart = tuple((customer_id, min(own_ns, nanos)) for customer_id, own_ns in self.gap_thresholds)
        return self._replace(gap_threshold_ns=min(self.gap_threshold_ns, nanos), gap_thresholds=apart)


class Resumed(NamedTuple):
    """Nothing could be taken from the one time to the other."""

    down_from_ns: int
    up_ns: int


What = Batch | Started | Stopped | Heartbeat | PossibleGap | Tick | Rules | Resumed


class Event(NamedTuple):
    """One journal row."""

    sequence: int
    received_ns: int
    caller: str
    what: What
