"""What a journal is: an ordered, durable list of rows. Drivers: ``sqlite.py``, ``memory.py``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from billaged.model.errors import InvalidField, StorageError
from billaged.model.records import JournalEntry, Kind
from billaged.wire import codec


class JournalRow(NamedTuple):
    """A row as it is stored; ``payload`` as it came."""

    sequence: int
    kind: int
    received_ns: int
    caller: str
    payload: bytes
    # What it is chained with (``chain.py``); empty in a row of before there was a chain.
    chain: bytes = b""


class Head(NamedTuple):
    """The chain of a row: it stands for every row up to that one."""

    sequence: int
    chain: bytes

    def __str__(self) -> str:
        return f"{self.sequence}:{self.chain.hex()}"


class Beginning(NamedTuple):
    """Rows ``after`` this sequence are chained, the first of them to ``chain``; 0 where all are."""

    after: int
    chain: bytes


class BegunAnew(NamedTuple):
    """Where a journal whose file was lost went on in a new one: behind row ``after``, which the ledger had come to."""

    after: int
    # From here to ``after`` rows are neither in the journal nor in a segment; ``after`` + 1 where none is lost.
    first_lost: int
    # The last row that the lost file had given, as far as it said so: those behind ``after`` are in no bill.
    given: int
    # Nanoseconds since the epoch, by the wall clock.
    begun_ns: int
    # The folder in the data directory with what was left of the file; empty where nothing was.
    set_aside: str

    @property
    def rows_lost(self) -> int:
        return self.after + 1 - self.first_lost

    @property
    def rows_unbilled(self) -> int:
        return max(0, self.given - self.after)


class Journal(Protocol):
    """One writer, many readers. ``append`` and ``prune`` belong to the writer's thread."""

    @property
    def journal_id(self) -> str:
        """A UUID, given when the journal was made."""

    @property
    def position(self) -> int:
        """The last sequence that was ever appended; 0 for none."""

    @property
    def pruned(self) -> int:
        """Sequences up to here have left; 0 for none."""

    @property
    def beginning(self) -> Beginning:
        """Where the chain begins."""

    @property
    def begun_anew(self) -> Sequence[BegunAnew]:
        """Where it went on in a new file, because the one before was lost."""

    @property
    def head(self) -> Head:
        """``position`` and the chain that the next row goes on from, of one moment. For any thread."""

    def chain_at(self, sequence: int) -> bytes:
        """The chain that the row after a sequence goes on from; empty before the chain's beginning. For any thread.

        The sequence is ``pruned``, ``position`` or one between them.

        Raises:
            StorageError: the row is not there, or has no chain.
        """

    def append(self, rows: Sequence[JournalRow]) -> None:
        """Make the rows durable, all or none. Their sequences and chains go on from ``head``.

        Raises:
            DurabilityLost: whether they are on disk is unknown; never append again.
        """

    def read(self, after: int, *, whole: bool = True) -> Iterator[list[JournalRow]]:
        """The rows after a sequence, in order, in chunks. For any thread.

        Those that have left are not among them. ``whole=False`` takes what is there.

        Raises:
            StorageError: a row is missing, was changed, or cannot be read; the message names it.
        """

    def newest_received_ns(self) -> int:
        """When the newest row was received; 0 where there is none.

        Raises:
            StorageError: the row has no such time.
        """

    def prune(self, through: int) -> None:
        """Remove rows up to a sequence; some of them now, the rest with the next calls.

        Raises:
            DurabilityLost: as ``append``.
        """

    def close(self) -> None: ...


def has_types(row: JournalRow) -> bool:
    """Whether each column is of its type: SQLite keeps whatever it is given."""
    sequence, kind, received_ns, caller, payload, chain = row
    numbers = isinstance(sequence, int) and isinstance(kind, int) and isinstance(received_ns, int)
    return numbers and isinstance(caller, str) and isinstance(payload, bytes) and isinstance(chain, bytes)


def entry_of(row: JournalRow) -> JournalEntry:
    """A row with its payload decoded.

    Raises:
        StorageError: the payload is no message of its kind, or a column not of its type: the file was changed.
    """
    if not has_types(row):
        raise StorageError(
            f"journal row {row.sequence} is damaged: a column is not of its type.",
            "The journal is damaged: restore it from a backup.",
        )
    try:
        kind = Kind(row.kind)
        record = codec.decode(kind, row.payload)
    except (ValueError, TypeError, InvalidField) as error:
        raise StorageError(
            f"journal row {row.sequence} (kind {row.kind}) cannot be decoded: {error}.",
            "The journal is damaged: restore it from a backup.",
        ) from error
    return JournalEntry(row.sequence, kind, row.received_ns, row.caller, row.payload, record, row.chain)
