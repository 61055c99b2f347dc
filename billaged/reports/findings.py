"""What a verification of the journal has found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from billaged.intake.journal import Beginning, Head
from billaged.model.records import Kind

# What can be wrong with a row.
Flaw = Literal["changed", "missing", "unreadable", "left over", "another"]


@dataclass(slots=True)
class Verification:
    """``problems`` is empty where all is well; of each flaw it names the first bad row, the rest are counted."""

    path: Path
    journal_id: str
    beginning: Beginning
    # Sequences up to here have left the journal.
    pruned: int
    # The last sequence at the beginning of the check, which went that far.
    end: int
    # None where the ledger cannot be read.
    ledger_position: int | None
    rows: int = 0
    # Rows in segment files, and how many files there are.
    segment_rows: int = 0
    segments: int = 0
    bad_rows: int = 0
    by_kind: Counter[Kind] = field(default_factory=Counter)
    # When the first and the last row of the journal were received, nanoseconds since the epoch; None without rows.
    first_received_ns: int | None = None
    last_received_ns: int | None = None
    # Of the last row.
    head: Head | None = None
    problems: list[str] = field(default_factory=list)
    _named: set[tuple[Flaw, bool]] = field(default_factory=set)

    def bad_row(self, flaw: Flaw, problem: str, count: int = 1, *, in_segment: bool = False) -> None:
        """Note ``count`` rows with the same flaw. The first ones of the journal and of the segments are named."""
        self.bad_rows += count
        if (flaw, in_segment) not in self._named:
            self._named.add((flaw, in_segment))
            self.problems.append(problem)

    @property
    def more_bad_rows(self) -> int:
        """How many bad rows no problem names."""
        return self.bad_rows - len(self._named)


def rows_named(first: int, last: int) -> str:
    return f"journal row {first} is" if first == last else f"journal rows {first} to {last} are"
