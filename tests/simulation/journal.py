"""The journal in memory, with its rows kept: what a disk is to a daemon that starts again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from billaged.intake.journal import JournalRow
from billaged.intake.memory import MemoryJournal

_CHUNK = 500


class KeptJournal(MemoryJournal):
    """Numbers, chains and heads are the real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[JournalRow] = []

    def append(self, rows: Sequence[JournalRow]) -> None:
        super().append(rows)
        self.rows += rows

    def read(self, after: int, *, whole: bool = True) -> Iterator[list[JournalRow]]:
        for start in range(after, len(self.rows), _CHUNK):
            yield self.rows[start : start + _CHUNK]
