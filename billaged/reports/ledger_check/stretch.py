"""The sessions of some VMs in columns, with their gaps: what facts and corrections are held against."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence, Set
from typing import Final

import numpy as np
from numpy.typing import NDArray

from billaged.ledger.audit_reader import VmRange
from billaged.model.time import INT64_MAX
from billaged.reports.ledger_check.rows import SUMMED, GapRow, SessionRow

Int64 = NDArray[np.int64]

# In place of a slot: the VM is not here; its sessions are not numbered 1 to n.
_ABSENT: Final = -1
_ODD: Final = -2
# A session weighs one; a gap takes less.
_GAPS_PER_WEIGHT: Final = 8


class Gathering:
    """A stretch in the making: takes VM after VM."""

    def __init__(self, customer_codes: dict[str, int], damaged: Mapping[str, Set[int]]) -> None:
        """``customer_codes`` grows; ``damaged`` are ordinals of sessions that are there, but say nothing, by VM."""
        self.customer_codes = customer_codes
        self.damaged = damaged
        self.vm_ids: list[str] = []
        self.first_slots: dict[str, int] = {}
        self.odd_slots: dict[tuple[str, int], int] = {}
        names = ("ordinal", "sessions_of_vm", "customer", "start", "until", "peak", "gaps_before", *SUMMED)
        self.columns = {name: array("q") for name in names}
        self.gap_columns = {name: array("q") for name in ("start", "end")}

    @property
    def weight(self) -> int:
        return len(self.vm_ids) + len(self.gap_columns["start"]) // _GAPS_PER_WEIGHT

    def add(self, vm_id: str, sessions: Sequence[SessionRow], gaps: Sequence[GapRow]) -> None:
        """A VM's sessions and gaps, all of them; each session's gaps in the order of time.

        A session is expected to have in its buckets what its totals say less what its gaps say.
        """
        by_ordinal = sorted(sessions, key=lambda session: session.ordinal)
        first = len(self.vm_ids)
        if [session.ordinal for session in by_ordinal] == [*range(1, len(by_ordinal) + 1)]:
            self.first_slots[vm_id] = first
        else:
            self.first_slots[vm_id] = _ODD
            self.odd_slots |= {(vm_id, session.ordinal): slot for slot, session in enumerate(by_ordinal, first)}
        gaps_of: dict[int, list[GapRow]] = {}
        for gap in gaps:
            gaps_of.setdefault(gap.ordinal, []).append(gap)
        for session in by_ordinal:
            its_gaps = gaps_of.get(session.ordinal, [])
            self.vm_ids.append(vm_id)
            self._append(
                ordinal=session.ordinal,
                sessions_of_vm=len(by_ordinal),
                customer=self.customer_codes.setdefault(session.customer_id, len(self.customer_codes)),
                start=session.start_ns,
                until=session.until_ns,
                peak=session.memory_peak_bytes,
                gaps_before=len(self.gap_columns["start"]),
                **{name: getattr(session, name) for name in SUMMED[5:]},
                **{name: getattr(session, name) - sum(getattr(gap, name) for gap in its_gaps) for name in SUMMED[:5]},
            )
            self.gap_columns["start"].extend(gap.start_ns for gap in its_gaps)
            self.gap_columns["end"].extend(gap.end_ns for gap in its_gaps)

    def _append(self, **values: int) -> None:
        for name, value in values.items():
            # What does not fit is wrong already, and stays wrong at the edge.
            self.columns[name].append(max(-INT64_MAX, min(INT64_MAX, value)))


class Stretch:
    """Sessions by slot. ``vms`` is all VMs that no other stretch has, also those without a session."""

    def __init__(self, gathered: Gathering, vms: VmRange) -> None:
        self.vms = vms
        self.vm_ids = gathered.vm_ids
        self.customer_codes = gathered.customer_codes
        self._damaged = gathered.damaged
        self._first_slots = gathered.first_slots
        self._odd_slots = gathered.odd_slots
        columns = {name: np.frombuffer(values, dtype=np.int64) for name, values in gathered.columns.items()}
        self.ordinal: Int64 = columns["ordinal"]
        self.customer: Int64 = columns["customer"]
        self.start: Int64 = columns["start"]
        self.until: Int64 = columns["until"]
        self.peak: Int64 = columns["peak"]
        # What each session's buckets have to add up to, in the order of SUMMED.
        self.expected: list[Int64] = [columns[name] for name in SUMMED]
        self._sessions_of_vm: Int64 = columns["sessions_of_vm"]
        self._gap_start: Int64 = np.frombuffer(gathered.gap_columns["start"], dtype=np.int64)
        self._gap_end: Int64 = np.frombuffer(gathered.gap_columns["end"], dtype=np.int64)
        self._gaps_from: Int64 = columns["gaps_before"]
        self._gaps_to: Int64 = np.append(columns["gaps_before"][1:], len(self._gap_start))[: len(self.vm_ids)]
        # May wrap around; the differences of one session do not.
        self._gap_sums: Int64 = np.concatenate(([0], np.cumsum(self._gap_end - self._gap_start)))

    def __len__(self) -> int:
        return len(self.vm_ids)

    def slots(self, vm_ids: Sequence[str], ordinals: Int64) -> Int64:
        """Where the sessions are; negative where there is no such one."""
        if not len(self):
            return np.full(len(vm_ids), _ABSENT, dtype=np.int64)
        get = self._first_slots.get
        first = np.array([get(vm_id, _ABSENT) for vm_id in vm_ids], dtype=np.int64)
        within = (first >= 0) & (ordinals >= 1) & (ordinals <= self._sessions_of_vm[first])
        slots = np.where(within, first + ordinals - 1, _ABSENT)
        for index in np.flatnonzero(first == _ODD).tolist():
            slots[index] = self._odd_slots.get((vm_ids[index], int(ordinals[index])), _ABSENT)
        return slots

    def slot(self, vm_id: str, ordinal: int) -> int:
        """As ``slots``, of one."""
        first = self._first_slots.get(vm_id, _ABSENT)
        if first == _ODD:
            return self._odd_slots.get((vm_id, ordinal), _ABSENT)
        return first + ordinal - 1 if first >= 0 and 1 <= ordinal <= self._sessions_of_vm[first] else _ABSENT

    def is_damaged(self, vm_id: str, ordinal: int) -> bool:
        """Whether there is such a session, but nothing can be held against it."""
        return ordinal in self._damaged.get(vm_id, ())

    def life_ns(self, slots: Int64, from_ns: Int64, to_ns: Int64) -> Int64:
        """How much of each session's life lies in each span."""
        life: Int64 = np.minimum(to_ns, self.until[slots]) - np.maximum(from_ns, self.start[slots])
        return np.maximum(life, 0)

    def gap_ns(self, slots: Int64, from_ns: Int64, to_ns: Int64) -> Int64:
        """How much of each span is a gap of the session."""
        result = np.zeros(len(slots), dtype=np.int64)
        some = np.flatnonzero(self._gaps_from[slots] < self._gaps_to[slots])
        if some.size:
            result[some] = self._gaps_until(slots[some], to_ns[some]) - self._gaps_until(slots[some], from_ns[some])
        return result

    def _gaps_until(self, slots: Int64, at_ns: Int64) -> Int64:
        """The time in gaps up to each instant, plus something that is the same for all instants of a session."""
        low, high = self._gaps_from[slots], self._gaps_to[slots]
        # How many gaps begin before it: a binary search for all of them at once.
        while (open_ := low < high).any():
            middle = (low + high) // 2
            before = open_ & (self._gap_start[np.minimum(middle, len(self._gap_start) - 1)] < at_ns)
            low = np.where(before, middle + 1, low)
            high = np.where(open_ & ~before, middle, high)
        last = np.maximum(low - 1, 0)
        unfinished = np.where(low > self._gaps_from[slots], np.maximum(self._gap_end[last] - at_ns, 0), 0)
        return self._gap_sums[low] - unfinished
