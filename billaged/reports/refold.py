"""The fold done again, by the daemon's own engine without its threads, a stretch of the journal at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from billaged.aggregator.engine import Engine
from billaged.aggregator.feeding import feed, take_up
from billaged.intake.chain import Follower
from billaged.intake.journal import Head, JournalRow, entry_of
from billaged.intake.journal_file import JournalFile
from billaged.intake.segments import Segments
from billaged.ledger.store import LedgerStore
from billaged.model.records import JournalEntry
from billaged.reports.errors import ProofFailed
from billaged.reports.verify import Progress

# Commit when this many rows wait, so that memory stays bounded.
_FLUSH_ROWS: Final = 200_000
_SHOWN: Final = 5


class Refold:
    """Folds on from where the store's ledger stands: from the beginning, or from a cut."""

    def __init__(self, journal: JournalFile, segments: Segments, store: LedgerStore, progress: Progress) -> None:
        self._journal = journal
        self._segments = segments
        self._store = store
        self._progress = progress
        begun = store.checkpoint()
        self._engine = Engine(begun)
        take_up(self._engine, store)
        known = Head(begun.position, begun.chain) if begun.chain else None
        self._follower = Follower(journal.about().beginning, known)
        # Rows that do not go on from the one before them.
        self.changed_rows = 0
        self.first_changed: list[int] = []

    @property
    def head(self) -> Head:
        """The last row that was folded."""
        return Head(self._engine.position, self._engine.chain)

    def go_to(self, position: int) -> None:
        """
        Raises:
            ProofFailed: a row is not there.
            StorageError: a row cannot be read.
        """
        for rows in self._rows(self._engine.position, position):
            entries = [_entry(row, before) for before, row in enumerate(rows, self._engine.position)]
            self._follow(rows)
            # What summaries it gives were given out when it was news.
            feed(self._engine, self._store, entries, replayed=True)
            if self._engine.waiting_rows() > _FLUSH_ROWS:
                self._flush()
            self._progress(self._engine.position, position)
        self._flush()
        if self._engine.position != position:
            raise ProofFailed(f"the journal ends at row {self._engine.position}, but the ledger has folded {position}.")

    def _follow(self, rows: Sequence[JournalRow]) -> None:
        for row in rows:
            if not self._follower.goes_on(row):
                self.changed_rows += 1
                if len(self.first_changed) < _SHOWN:
                    self.first_changed.append(row.sequence)

    def _rows(self, after: int, through: int) -> Iterator[list[JournalRow]]:
        """What has left the journal from its segments, the rest from the journal; more may leave meanwhile."""
        while after < through:
            pruned = self._journal.pruned()
            source = self._segments.read(after, min(pruned, through)) if after < pruned else None
            begun = after
            for rows in source or self._journal.rows(after, through):
                if rows[0].sequence != after + 1 and self._journal.pruned() > after:
                    break
                yield rows
                after = rows[-1].sequence
            if after == begun and self._journal.pruned() <= after:
                return

    def _flush(self) -> None:
        if (changes := self._engine.collect()) is not None:
            self._store.commit(changes)
            # As in the daemon: what runs stays in memory, not all that ever ran.
            self._engine.evict_ended()


def _entry(row: JournalRow, before: int) -> JournalEntry:
    if row.sequence != before + 1:
        raise ProofFailed(f"journal row {before + 1} is missing. 'billaged journal verify' says more.")
    return entry_of(row)
