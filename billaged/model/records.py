"""Records: what one journal row holds, once decoded.

The first five come from callers, one for each RPC; ``Tick``, ``FoldRules`` and ``Resumed``
are the daemon's own, journaled because the fold depends on them: the same journal
gives the same ledger, whenever and wherever it is folded.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from enum import IntEnum
from typing import Final, NamedTuple

from billaged.model.time import HOUR_NANOS, MINUTE_NANOS


class Kind(IntEnum):
    """The kind of a journal row. Numbers are on disk: only ever add."""

    METRICS = 1
    HEARTBEAT = 2
    STARTED = 3
    STOPPED = 4
    POSSIBLE_GAP = 5
    TICK = 64
    RULES = 65
    RESUMED = 66


# One sample is seven int64 in this order. The five counters stand together so that
# the fold can take them as one block of columns.
SAMPLE_FIELDS: Final = (
    "time_ns",
    "memory_bytes",
    "cpu_time_ns",
    "disk_read_bytes",
    "disk_write_bytes",
    "network_rx_bytes",
    "network_tx_bytes",
)
SAMPLE_WIDTH: Final = len(SAMPLE_FIELDS)
COUNTER_FIELDS: Final = SAMPLE_FIELDS[2:]
COUNTERS: Final = len(COUNTER_FIELDS)

MAX_MEMORY_BYTES: Final = 2**48

# Of a journal row's chain value.
CHAIN_BYTES: Final = 32


class MetricsBatch(NamedTuple):
    """Samples of one VM: ``samples`` is row-major, ``SAMPLE_WIDTH`` int64 a sample."""

    vm_id: str
    customer_id: str
    samples: array[int]

    @property
    def sample_count(self) -> int:
        return len(self.samples) // SAMPLE_WIDTH


class Heartbeat(NamedTuple):
    instance_id: str
    active_vms: tuple[str, ...]


class VmStarted(NamedTuple):
    vm_id: str
    customer_id: str
    start_ns: int


class VmStopped(NamedTuple):
    vm_id: str
    stop_ns: int


class PossibleGap(NamedTuple):
    vm_id: str
    last_sent_ns: int
    resume_ns: int


class Tick(NamedTuple):
    """Time passing, as far as the fold knows it.

    ``time_ns`` is the wall clock, ``length_ns`` how much silence this tick stands for
    (0 for the one a stop writes), and ``closes_interval`` whether summaries are due.
    """

    time_ns: int
    length_ns: int
    closes_interval: bool


class FoldRules(NamedTuple):
    """The settings the fold depends on. In force from their journal row on."""

    gap_threshold_ns: int = 15 * MINUTE_NANOS
    bucket_ns: int = HOUR_NANOS
    vanish_after_ns: int = HOUR_NANOS
    # A step that no machine could have run: CPU time over this many cores, or
    # bytes over this many GB/s (10^9, so bytes per nanosecond), in the time passed
    # plus a second.
    max_cores: int = 256
    max_gigabytes_per_second: int = 50
    # Customers with a gap threshold of their own, and that: each customer once, by id.
    gap_thresholds: tuple[tuple[str, int], ...] = ()

    def gap_threshold_of(self, customer_id: str) -> int:
        """The gap threshold of this customer's VMs, in ns."""
        at = bisect_left(self.gap_thresholds, (customer_id,))
        if at < len(self.gap_thresholds) and self.gap_thresholds[at][0] == customer_id:
            return self.gap_thresholds[at][1]
        return self.gap_threshold_ns


class Resumed(NamedTuple):
    """billaged took nothing in ``[down_from_ns, up_ns)``: it was not running, or it refused."""

    down_from_ns: int
    up_ns: int


Record = MetricsBatch | Heartbeat | VmStarted | VmStopped | PossibleGap | Tick | FoldRules | Resumed


class JournalEntry(NamedTuple):
    """One row of the journal. ``record`` is ``payload`` decoded."""

    sequence: int
    kind: Kind
    received_ns: int
    caller: str
    payload: bytes
    record: Record
    # What the journal chains the row with (intake/chain.py); empty for rows of before there was a chain.
    chain: bytes = b""
