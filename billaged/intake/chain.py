"""The chain through the journal: each row's chain is a digest of the row and of the chain of the row before it.

So the chain of one row, its head, stands for every row up to it: whoever has kept a head elsewhere finds out
whether any of them was changed since. The format is fixed: chains are on disk, and heads in other people's hands.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable
from typing import Final

from billaged.intake.journal import Beginning, Head, JournalRow, has_types
from billaged.model.records import CHAIN_BYTES

_ROW: Final = hashlib.blake2b(b"billaged journal 1\n", digest_size=CHAIN_BYTES)
_START: Final = hashlib.blake2b(b"billaged journal 1 start\n", digest_size=CHAIN_BYTES)
# Sequence, kind, received_ns, and the lengths of the two that follow: no two rows give the same bytes.
_pack: Final = struct.Struct("<qqqQQ").pack

_HEAD: Final = re.compile(rf"(0|[1-9][0-9]{{0,18}}):([0-9a-f]{{{2 * CHAIN_BYTES}}})")


def start_of(journal_id: str) -> bytes:
    """What a journal's first chained row goes on from: no two journals have a chain in common."""
    state = _START.copy()
    state.update(journal_id.encode())
    return state.digest()


def next_chain(previous: bytes, sequence: int, kind: int, received_ns: int, caller: str, payload: bytes) -> bytes:
    """The chain of a row after one whose chain is ``previous`` (``CHAIN_BYTES`` bytes)."""
    name = caller.encode()
    state = _ROW.copy()
    state.update(previous + _pack(sequence, kind, received_ns, len(name), len(payload)) + name + payload)
    return state.digest()


def rows_after(head: Head, records: Iterable[tuple[int, int, str, bytes]]) -> list[JournalRow]:
    """The journal's next rows: these kinds, times of receipt, callers and payloads, each with its chain."""
    chain = head.chain
    rows = []
    for sequence, (kind, received_ns, caller, payload) in enumerate(records, head.sequence + 1):
        chain = next_chain(chain, sequence, kind, received_ns, caller, payload)
        rows.append(JournalRow(sequence, kind, received_ns, caller, payload, chain))
    return rows


class Follower:
    """Follows rows and says whether each goes on from the one before it.

    After a jump in the sequence the chain before the row is not known: that row is taken as it is.
    """

    def __init__(self, beginning: Beginning | None = None, known: Head | None = None) -> None:
        """``beginning`` of the journal's chain and the ``known`` head to go on from; None where they are not known."""
        self._beginning = beginning
        self._known = known

    def goes_on(self, row: JournalRow) -> bool:
        """Whether the row is the one that was chained. What comes next is measured by the chain it has."""
        known = self._known
        self._known = None
        if not has_types(row):
            return False
        sequence, chain = row.sequence, row.chain
        if chain:
            self._known = Head(sequence, chain)
        if self._beginning is not None:
            if sequence <= self._beginning.after:
                return not chain
            if sequence == self._beginning.after + 1:
                return _gives(self._beginning.chain, row)
            if not chain:
                return False
        if known is None or known.sequence + 1 != sequence:
            return len(chain) in (0, CHAIN_BYTES)
        return _gives(known.chain, row)


def _gives(previous: bytes, row: JournalRow) -> bool:
    try:
        return next_chain(previous, *row[:5]) == row.chain
    except (struct.error, UnicodeEncodeError):
        # A number over 64 bits, or half a character: no journal gave that.
        return False


def parse_head(text: str) -> Head:
    """A head as ``str`` gives it, SEQUENCE:HEX.

    Raises:
        ValueError: it is none.
    """
    match = _HEAD.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} is no head: a sequence, a colon and {2 * CHAIN_BYTES} hexadecimal digits")
    return Head(int(match[1]), bytes.fromhex(match[2]))
