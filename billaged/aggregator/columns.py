"""The state of every VM the fold knows, in columns: one row a VM, int64 unless said.

A row is its VM's newest session, and the newest two instants of its timeline. What few
VMs have at a time (a mark, an end, usage in the running interval) lives in side tables,
so that the common VM stays small.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from billaged.aggregator.arithmetic import Int64
from billaged.aggregator.state import MARKS
from billaged.model.records import COUNTERS

RUNNING: Final = 1  # the session has not ended
EXPLICIT: Final = 2  # a start notification opened it, or came to it later
NEWEST_STORED: Final = 4  # the timeline's newest instant is among the kept ones, or on its way there
NEWEST_START: Final = 8  # the newest instant holds a start
NEWEST_STOP: Final = 16  # and a stop
PREVIOUS_LOOSE: Final = 32  # the instant before the newest is stored, but not kept once another is appended
LISTED: Final = 64  # an instance lists the VM
WAS_LISTED: Final = 128  # one did since its session opened
SILENT: Final = 256  # the VM was not heard for the gap threshold, and that was told
VANISHED: Final = 512  # the session has ended so; it is not RUNNING
UNHEARD: Final = 1024  # a silence of the VM is open
OPEN_SILENT_VM: Final = 2048  # silences without an end yet, by reason (`vanished` is open where VANISHED is set)
OPEN_SILENT_HOST: Final = 4096
OPEN_NO_SAMPLES: Final = 8192
# All that the next point clears (aggregator/silence.py); UNHEARD is set where any of the OPEN ones or VANISHED is.
SILENCE_FLAGS: Final = SILENT | VANISHED | UNHEARD | OPEN_SILENT_VM | OPEN_SILENT_HOST | OPEN_NO_SAMPLES

# A session's totals as one row: the counters, then these.
TOTAL_MIB, TOTAL_REST, TOTAL_MEASURED, TOTAL_GAP, TOTAL_SAMPLES, TOTAL_PEAK = range(COUNTERS, COUNTERS + 6)
TOTALS_WIDTH: Final = COUNTERS + 6

_FIRST_CAPACITY: Final = 256

Scalar = TypeVar("Scalar", bound=np.generic)


def _grown(capacity: int) -> int:
    """By a thirty-second: a large fleet wastes at most 9 bytes a VM, and copying stays amortised."""
    return max(_FIRST_CAPACITY, capacity + capacity // 32)


class Ended(NamedTuple):
    """How a session ended, and where its VM's timeline does."""

    end_ns: int
    # The timeline's newest instant: later than the end where stops came that counted for nothing.
    newest_ns: int
    # The rules (their number) that the tail was billed by.
    tail_rules: int


class Lineage(NamedTuple):
    """``timeline`` is the current one's number, ``highest`` that of the VM's sessions."""

    timeline: int
    highest: int


class SideTable:
    """Rows of ``width`` int64 for some of the VMs; ``slot[row]`` says which, -1 for none."""

    def __init__(self, width: int) -> None:
        self.values: Int64 = np.zeros((0, width), dtype=np.int64)
        # The VM row that owns each slot, -1 for a free one.
        self.owner: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self._free: list[int] = []
        # Slots handed out at least once; all beyond are free.
        self._used = 0
        # And before all of them were released.
        self._used_before = 0

    def __len__(self) -> int:
        return self._used - len(self._free)

    def allocate(self, row: int) -> int:
        return int(self.allocate_many(np.array([row], dtype=np.intp))[0])

    def allocate_many(self, rows: NDArray[np.intp]) -> NDArray[np.int32]:
        """Slots for these VM rows; their values are whatever they were, to be written now."""
        wanted = len(rows)
        reused = [self._free.pop() for _ in range(min(wanted, len(self._free)))]
        fresh = wanted - len(reused)
        while self._used + fresh > len(self.owner):
            # Twice as many as long as it was more before it was emptied: few copies, and no room that nobody needs.
            doubled = min(2 * len(self.owner), self._used_before)
            capacity = max(_grown(len(self.owner)), doubled, self._used + fresh)
            self.values = _resized(self.values, capacity)
            self.owner = _resized(self.owner, capacity)
        slots = np.array([*reused, *range(self._used, self._used + fresh)], dtype=np.int32)
        self._used += fresh
        self.owner[slots] = rows
        return slots

    def release(self, slot: int) -> None:
        self.owner[slot] = -1
        self._free.append(slot)

    def release_all(self) -> None:
        """And give the room back: the next interval may need much less."""
        self.values, self.owner = self.values[:0].copy(), self.owner[:0].copy()
        self._free.clear()
        self._used, self._used_before = 0, self._used

    def slots(self) -> NDArray[np.intp]:
        """The slots in use."""
        return np.flatnonzero(self.owner[: self._used] >= 0)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.owner.nbytes


def _resized(array: NDArray[Scalar], capacity: int) -> NDArray[Scalar]:
    grown = np.zeros((capacity, *array.shape[1:]), dtype=array.dtype)
    grown[: len(array)] = array
    return grown


class Columns:
    """One row a VM. The thread that folds writes; readers hold the aggregator's lock."""

    def __init__(self) -> None:
        # From id to row and back; "" stands for a free row.
        self.row_of: dict[str, int] = {}
        self.vm_id: list[str] = []
        # Customers are few and repeat: rows keep a number.
        self.customer_ids: list[str] = []
        self.customer_number: dict[str, int] = {}
        self._free: list[int] = []

        self.start: Int64 = np.zeros(0, dtype=np.int64)
        # The session's newest sample's time; its start where there is none.
        self.last_time: Int64 = np.zeros(0, dtype=np.int64)
        # Its memory, 0 where there is none; and the VM's newest counters, of whichever session.
        self.memory: Int64 = np.zeros(0, dtype=np.int64)
        self.last: Int64 = np.zeros((0, COUNTERS), dtype=np.int64)
        # The instant before the newest, where both hold a sample and nothing else.
        self.previous_time: Int64 = np.zeros(0, dtype=np.int64)
        self.previous_memory: Int64 = np.zeros(0, dtype=np.int64)
        self.previous: Int64 = np.zeros((0, COUNTERS), dtype=np.int64)
        # The session's totals. Measured time is what is accounted for less the gaps.
        self.total: Int64 = np.zeros((0, COUNTERS), dtype=np.int64)
        self.total_mib: Int64 = np.zeros(0, dtype=np.int64)
        self.total_rest: Int64 = np.zeros(0, dtype=np.int64)
        self.total_gap: Int64 = np.zeros(0, dtype=np.int64)
        self.peak: Int64 = np.zeros(0, dtype=np.int64)
        self.samples: Int64 = np.zeros(0, dtype=np.int64)
        self.ordinal: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self.customer: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        # When the VM was heard, in seconds of ticks.
        self.heard: NDArray[np.uint32] = np.zeros(0, dtype=np.uint32)
        # The rules (their number) of the link into the newest instant.
        self.link_rules: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self.flags: NDArray[np.uint16] = np.zeros(0, dtype=np.uint16)
        # How many more links into appended samples are open for good.
        self.follow: NDArray[np.uint8] = np.zeros(0, dtype=np.uint8)
        # Whether the row differs from the ledger's.
        self.dirty: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)

        # Counters' marks, as a state has them.
        self.mark_slot: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self.marks = SideTable(MARKS)
        # Of rows that are not running: they are few, and soon evicted.
        self.ended: dict[int, Ended] = {}
        # Of VMs with more than one timeline, or with session numbers that do not follow time.
        self.lineage: dict[int, Lineage] = {}
        # In seconds of ticks: since when nobody lists a VM that was listed.
        self.unlisted_at: dict[int, int] = {}
        # The totals before the running interval's first usage; in the peak's place the
        # highest memory sampled in the interval. A window is the difference.
        self.window_slot: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self.windows = SideTable(TOTALS_WIDTH)

    _COLUMNS: Final = (
        "start", "last_time", "memory", "last", "previous_time", "previous_memory", "previous", "total", "total_mib",
        "total_rest", "total_gap", "peak", "samples", "ordinal", "customer", "heard", "link_rules", "flags", "follow",
        "dirty", "mark_slot", "window_slot",
    )  # fmt: skip

    def __len__(self) -> int:
        return len(self.row_of)

    def number_of_customer(self, customer_id: str) -> int:
        number = self.customer_number.get(customer_id)
        if number is None:
            number = self.customer_number[customer_id] = len(self.customer_ids)
            self.customer_ids.append(customer_id)
        return number

    def add(self, vm_id: str) -> int:
        """A row for a VM that has none: all zero, slots at -1."""
        if self._free:
            row = self._free.pop()
            for name in self._COLUMNS:
                getattr(self, name)[row] = 0
            self.vm_id[row] = vm_id
        else:
            row = len(self.vm_id)
            if row == len(self.start):
                self.reserve(_grown(row))
            self.vm_id.append(vm_id)
        self.mark_slot[row] = self.window_slot[row] = -1
        self.row_of[vm_id] = row
        return row

    def reserve(self, capacity: int) -> None:
        """Room for this many rows."""
        if capacity > len(self.start):
            for name in self._COLUMNS:
                setattr(self, name, _resized(getattr(self, name), capacity))

    def evict(self, rows: Iterable[int]) -> None:
        """Forget rows that the ledger holds; a later record of their VM loads them again."""
        for row in rows:
            for slots, table in (
                (self.mark_slot, self.marks),
                (self.window_slot, self.windows),
            ):
                if slots[row] >= 0:
                    table.release(int(slots[row]))
            for few in (self.ended, self.lineage, self.unlisted_at):
                few.pop(row, None)
            del self.row_of[self.vm_id[row]]
            self.vm_id[row] = ""
            self.flags[row] = 0
            self._free.append(row)

    def open_windows(self, rows: NDArray[np.intp]) -> None:
        """Remember the totals of these (distinct) rows, where the running interval has not touched them yet."""
        rows = rows[self.window_slot[rows] < 0]
        if not len(rows):
            return
        slots = self.windows.allocate_many(rows)
        self.window_slot[rows] = slots
        base = self.totals(rows)
        base[:, TOTAL_PEAK] = 0
        self.windows.values[slots] = base

    def totals(self, rows: NDArray[np.intp]) -> Int64:
        """The totals of these rows' sessions so far, shape (n, TOTALS_WIDTH)."""
        totals = np.empty((len(rows), TOTALS_WIDTH), dtype=np.int64)
        totals[:, :COUNTERS] = self.total[rows]
        totals[:, TOTAL_MIB] = self.total_mib[rows]
        totals[:, TOTAL_REST] = self.total_rest[rows]
        totals[:, TOTAL_GAP] = self.total_gap[rows]
        totals[:, TOTAL_MEASURED] = self.accounted(rows) - self.start[rows] - totals[:, TOTAL_GAP]
        totals[:, TOTAL_SAMPLES] = self.samples[rows]
        totals[:, TOTAL_PEAK] = self.peak[rows]
        return totals

    def accounted(self, rows: NDArray[np.intp]) -> Int64:
        """The newest instant each session accounts for: its end, or its newest sample while it runs."""
        accounted = self.last_time[rows]
        for index in np.flatnonzero((self.flags[rows] & RUNNING) == 0).tolist():
            accounted[index] = self.ended[int(rows[index])].end_ns
        return accounted

    @property
    def nbytes(self) -> int:
        """Bytes of the columns and side tables, without the ids."""
        tables = self.marks.nbytes + self.windows.nbytes
        return tables + sum(int(getattr(self, name).nbytes) for name in self._COLUMNS)
