"""What a verification of the journal has found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from billaged.intake.journal import Beginning, BegunAnew, Head
from billaged.model.records import Kind
from billaged.model.time import format_instant

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
    # Where it went on without the rows before, which were lost: these are no problem of what is there.
    begun_anew: Sequence[BegunAnew] = ()
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

    @property
    def ends_early(self) -> bool:
        """Whether it lacks rows at its end, and has none that the ledger has not: the ledger can go on without them."""
        if self.head is None or self.ledger_position is None:
            return False
        return self.head.sequence <= self.ledger_position and self.head.sequence < max(self.end, self.ledger_position)


def begun_anew_named(story: BegunAnew) -> str:
    """A line for people: which rows are not there to prove anything with."""
    begun = f"the journal was begun anew behind row {story.after:,} at {format_instant(story.begun_ns)}"
    if story.rows_lost:
        lost = f"rows {story.first_lost:,} to {story.after:,} are lost, so no replay proves what the ledger has of them"
    else:
        lost = "the rows before are in segments"
    if story.rows_unbilled:
        lost += f"; rows {story.after + 1:,} to {story.given:,} of before were acknowledged, and are in no bill"
    return f"{begun}: {lost}"


def rows_named(first: int, last: int) -> str:
    return f"journal row {first} is" if first == last else f"journal rows {first} to {last} are"
