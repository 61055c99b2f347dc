"""The journal that lasts as long as the process: the stateless mode."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence

from billaged.intake.chain import start_of
from billaged.intake.journal import Beginning, BegunAnew, Head, JournalRow
from billaged.model.errors import StorageError


class MemoryJournal:
    """Counts what it is given and keeps none of it but the head: nothing is ever replayed from it."""

    def __init__(self) -> None:
        self.journal_id = str(uuid.uuid4())
        self.beginning = Beginning(0, start_of(self.journal_id))
        self.begun_anew: Sequence[BegunAnew] = ()
        self.head = Head(0, self.beginning.chain)
        self._newest_received_ns = 0

    @property
    def position(self) -> int:
        return self.head.sequence

    @property
    def pruned(self) -> int:
        return self.position

    def chain_at(self, sequence: int) -> bytes:
        head = self.head
        if sequence != head.sequence:
            raise StorageError(f"journal row {sequence} is not kept in memory.")
        return head.chain

    def append(self, rows: Sequence[JournalRow]) -> None:
        self.head = Head(rows[-1].sequence, rows[-1].chain)
        self._newest_received_ns = rows[-1].received_ns

    def read(self, after: int, *, whole: bool = True) -> Iterator[list[JournalRow]]:
        return iter(())

    def newest_received_ns(self) -> int:
        return self._newest_received_ns

    def prune(self, through: int) -> None:
        """Nothing is kept in the first place."""

    def close(self) -> None:
        """Nothing is held open."""
