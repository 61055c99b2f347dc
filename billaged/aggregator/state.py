"""Where a walk along a timeline stands."""

from __future__ import annotations

from typing import Final, NamedTuple

from billaged.aggregator.effects import NO_AMOUNTS, Amounts
from billaged.model.records import COUNTERS

# Two for each counter, 0 for none: first the lower ones, then the higher ones (of counters that have two).
Marks = tuple[int, ...]
MARKS: Final = 2 * COUNTERS
NO_MARKS: Final[Marks] = (0,) * MARKS

# The phases.
NONE: Final = 0  # no session yet
RUNNING: Final = 1
ENDED: Final = 2  # by a stop


class State(NamedTuple):
    """What the next instant is billed from; nothing else of the past matters to it."""

    phase: int = NONE
    ordinal: int = 0
    # Of the session: whether it was sampled, its newest sample's time (its start where it has none) and memory.
    has_samples: bool = False
    last_ns: int = 0
    memory_bytes: int = 0
    # Where it has ended: when, and by which rules (their number) its tail was billed.
    end_ns: int = 0
    tail_rules: int = 0
    # The VM's newest counters, and their marks. Those of a VM never sampled are 0, which bills as if
    # it had been sampled at its boot: the first value counts whole.
    last: Amounts = NO_AMOUNTS
    marks: Marks = NO_MARKS

    def carried(self) -> State:
        """The state in which the VM's next timeline begins."""
        return State(last=self.last, marks=self.marks)
