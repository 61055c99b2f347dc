"""Which VMs are listed by any instance: a flag in the VM's row, and a number for the few where that is not enough."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from billaged.aggregator.columns import LISTED, Columns


class Listings:
    """How many instances list each VM.

    The LISTED flag of a row stands for one of them. What is left (a VM that two instances list
    while it moves, VMs that have no row) is counted by id.
    """

    def __init__(self) -> None:
        self._beyond: dict[str, int] = {}

    def count_each(self, columns: Columns, rows: Sequence[int]) -> list[int]:
        """How many instances list each of these rows, all of them listed."""
        if not self._beyond:
            return [1] * len(rows)
        return [1 + self._beyond.get(columns.vm_id[row], 0) for row in rows]

    def add(self, columns: Columns, vm_id: str) -> int | None:
        """One more instance lists it. Its row, where it has one."""
        row = columns.row_of.get(vm_id)
        if row is None or int(columns.flags[row]) & LISTED:
            self._beyond[vm_id] = self._beyond.get(vm_id, 0) + 1
        else:
            columns.flags[row] |= LISTED
        return row

    def remove(self, columns: Columns, vm_id: str) -> int | None:
        """One instance less lists it. Its row, where it has one and nobody lists it any more."""
        beyond = self._beyond.get(vm_id, 0)
        if beyond:
            self._put(vm_id, beyond - 1)
            return None
        row = columns.row_of[vm_id]
        columns.flags[row] = int(columns.flags[row]) & ~LISTED
        return row

    def restore(self, vm_ids: Iterable[str]) -> None:
        """An instance of the ledger lists these; no row is there yet."""
        for vm_id in vm_ids:
            self._beyond[vm_id] = self._beyond.get(vm_id, 0) + 1

    def compact(self) -> None:
        """Give back the room of what has left."""
        self._beyond = dict(self._beyond)

    def adopt(self, columns: Columns, rows: Iterable[int]) -> None:
        """These rows are new in the columns: from now on their flag stands for one listing."""
        for row in rows:
            beyond = self._beyond.get(columns.vm_id[row], 0)
            if beyond:
                self._put(columns.vm_id[row], beyond - 1)
                columns.flags[row] |= LISTED
            else:
                columns.flags[row] = int(columns.flags[row]) & ~LISTED

    def release(self, columns: Columns, rows: Iterable[int]) -> None:
        """These rows are about to leave the columns."""
        for row in rows:
            if int(columns.flags[row]) & LISTED:
                vm_id = columns.vm_id[row]
                self._beyond[vm_id] = self._beyond.get(vm_id, 0) + 1
                columns.flags[row] = int(columns.flags[row]) & ~LISTED

    def _put(self, vm_id: str, beyond: int) -> None:
        if beyond:
            self._beyond[vm_id] = beyond
        else:
            del self._beyond[vm_id]
