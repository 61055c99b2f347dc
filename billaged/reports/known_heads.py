"""Heads that are known from elsewhere, each compared with the row that it stands for."""

from __future__ import annotations

from typing import NamedTuple

from billaged.intake.journal import Head
from billaged.reports.findings import Verification


class _Known(NamedTuple):
    chain: bytes
    # Ends the sentence: row so-and-so is not the one that ...
    says: str
    # Kept by somebody else than journal and segments: few, and each is named.
    witness: bool


class KnownHeads:
    """By sequence: the chain that a row must have, and who says so."""

    def __init__(self, found: Verification) -> None:
        self._found = found
        self._known: dict[int, list[_Known]] = {}
        # Each must be met.
        self._given: list[Head] = []
        self._met: set[int] = set()

    def add_given(self, head: Head) -> None:
        """By who asks."""
        self._given.append(head)
        self._add(head, f"--head {head.sequence}:{head.chain.hex()[:8]}... stands for", witness=True)

    def add_ledgers(self, head: Head) -> None:
        self._add(head, "the ledger has folded", witness=True)

    def add_link(self, head: Head, says: str) -> None:
        """What one file says where the next one goes on. ``says`` ends a sentence: not the one that ..."""
        self._add(head, says, witness=False)

    def _add(self, head: Head, says: str, *, witness: bool) -> None:
        self._known.setdefault(head.sequence, []).append(_Known(head.chain, says, witness))

    def compare(self, sequence: int, chain: bytes, *, in_segment: bool = False) -> None:
        """Note where the chain of a row is not the one that is known."""
        for known in self._known.get(sequence, ()):
            self._met.add(sequence)
            if known.chain == chain:
                continue
            problem = f"journal row {sequence} is not the one that {known.says}: it or one before it was changed"
            if not known.witness:
                self._found.bad_row("another", problem, in_segment=in_segment)
            elif problem not in self._found.problems:
                self._found.problems.append(problem)

    def note_unmet(self) -> None:
        """Note which given heads stand for a row that was not there."""
        for head in self._given:
            if head.sequence in self._met:
                continue
            named = f"row {head.sequence}, which --head stands for"
            if head.sequence > self._found.end:
                problem = f"the journal is truncated: it ends at row {self._found.end}, before {named}"
            else:
                problem = f"{named}, is not there to compare"
            self._found.problems.append(problem)
