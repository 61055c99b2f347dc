"""What a check finds: how many rows it held against each invariant, and which broke it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from billaged.intake.journal import BegunAnew
from billaged.ledger.audit_chunk import Chunk
from billaged.reports.ledger_check import invariants as law

# Of each invariant; the others are counted.
_SHOWN_MAX: Final = 10

Key = dict[str, Any]


class Broken(NamedTuple):
    """A row that breaks an invariant. ``key`` names it in its table; ``problem`` has the numbers."""

    invariant: str
    table: str
    key: Key
    problem: str


class Findings:
    """``checked`` and ``broken`` count rows by invariant; ``first`` has the first few broken ones of each."""

    def __init__(self) -> None:
        self.checked: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        self.first: dict[str, list[Broken]] = {}
        # The cut that the replay began at; 0 for the first row.
        self.replayed_after = 0
        # Of the journal: where it went on without rows that were lost, and whether it lacks its end.
        self.begun_anew: Sequence[BegunAnew] = ()
        self.journal_ends_early = False
        self._newest: dict[str, tuple[str, Key]] = {}

    def hold(self, rows: int, *invariants: str) -> None:
        """These rows are held against these invariants."""
        for invariant in invariants:
            self.checked[invariant] += rows

    def take(self, chunk: Chunk, *invariants: str) -> None:
        """Rows to hold against these invariants; those that are damaged break ``values``, and hold nothing else."""
        self.hold(len(chunk.rows), *invariants)
        self.hold(len(chunk.damaged), law.VALUES)
        for damaged in chunk.damaged:
            self.broke(law.VALUES, damaged.table, damaged.key, damaged.problem)

    def broke(self, invariant: str, table: str, key: Key, problem: str) -> None:
        """A row breaks an invariant, maybe in one more way than said just before."""
        shown = self.first.setdefault(invariant, [])
        if key and self._newest.get(invariant) == (table, key):
            if self.broken[invariant] == len(shown):
                shown[-1] = shown[-1]._replace(problem=f"{shown[-1].problem}; {problem}")
            return
        self._newest[invariant] = (table, key)
        self.broken[invariant] += 1
        if len(shown) < _SHOWN_MAX:
            shown.append(Broken(invariant, table, key, problem))

    def more(self, invariant: str, rows: int) -> None:
        """So many rows break it besides, which nobody named."""
        self.broken[invariant] += rows
