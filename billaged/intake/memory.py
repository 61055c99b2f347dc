"""The journal that lasts as long as the process: the stateless mode."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence

from billaged.intake.journal import JournalRow


class MemoryJournal:
    """Counts what it is given and keeps none of it: nothing is ever replayed from it."""

    def __init__(self) -> None:
        self.journal_id = str(uuid.uuid4())
        self.position = 0
        self._newest_received_ns = 0

    @property
    def pruned(self) -> int:
        return self.position

    def append(self, rows: Sequence[JournalRow]) -> None:
        self.position = rows[-1].sequence
        self._newest_received_ns = rows[-1].received_ns

    def read(self, after: int, *, whole: bool = True) -> Iterator[list[JournalRow]]:
        return iter(())

    def newest_received_ns(self) -> int:
        return self._newest_received_ns

    def prune(self, through: int) -> None:
        """Nothing is kept in the first place."""

    def close(self) -> None:
        """Nothing is held open."""
