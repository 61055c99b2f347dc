"""Rows of the ledger as a check takes them, by name."""

from __future__ import annotations

from typing import NamedTuple

from billaged.model.quantity import REST_PER_MIB_SECOND

# What facts, corrections and gaps add up to, in the order of their columns.
SUMMED = (
    *("cpu_time_ns", "disk_read_bytes", "disk_write_bytes", "network_rx_bytes", "network_tx_bytes"),
    *("memory_mib_seconds", "memory_rest_byte_nanos", "measured_ns", "samples"),
)


class SessionRow(NamedTuple):
    """In the order of ``audit_reader.SESSION_COLUMNS``."""

    vm_id: str
    ordinal: int
    customer_id: str
    start_ns: int
    explicit: int
    last_ns: int
    end_ns: int | None
    end_kind: str | None
    cpu_time_ns: int
    disk_read_bytes: int
    disk_write_bytes: int
    network_rx_bytes: int
    network_tx_bytes: int
    memory_mib_seconds: int
    memory_rest_byte_nanos: int
    measured_ns: int
    gap_ns: int
    samples: int
    memory_peak_bytes: int
    newest: int

    @property
    def until_ns(self) -> int:
        """How far its life is accounted for."""
        return self.last_ns if self.end_ns is None else self.end_ns

    @property
    def memory_byte_nanos(self) -> int:
        return self.memory_mib_seconds * REST_PER_MIB_SECOND + self.memory_rest_byte_nanos


class GapRow(NamedTuple):
    """In the order of ``aggregator.changes.GAP_COLUMNS``."""

    vm_id: str
    ordinal: int
    start_ns: int
    end_ns: int
    kind: str
    customer_id: str
    cpu_time_ns: int
    disk_read_bytes: int
    disk_write_bytes: int
    network_rx_bytes: int
    network_tx_bytes: int
    sequence: int


class BucketRow(NamedTuple):
    """A fact's or a correction's, in the order of ``aggregator.changes.FACT_COLUMNS``."""

    bucket_start_ns: int
    bucket_ns: int
    vm_id: str
    ordinal: int
    customer_id: str
    cpu_time_ns: int
    disk_read_bytes: int
    disk_write_bytes: int
    network_rx_bytes: int
    network_tx_bytes: int
    memory_mib_seconds: int
    memory_rest_byte_nanos: int
    measured_ns: int
    samples: int
    memory_peak_bytes: int

    @property
    def memory_byte_nanos(self) -> int:
        return self.memory_mib_seconds * REST_PER_MIB_SECOND + self.memory_rest_byte_nanos
