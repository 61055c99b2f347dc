"""The ledger computed anew from its journal, and compared with the one that is there, row by row."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from billaged.aggregator.engine import Engine
from billaged.intake.journal import JournalRow, entry_of
from billaged.intake.journal_file import JournalFile
from billaged.intake.segments import FOLDER_NAME as SEGMENTS
from billaged.intake.segments import Segments
from billaged.intake.sqlite import FILE_NAME
from billaged.ledger import database
from billaged.ledger.dump import DUMPED
from billaged.ledger.reader import LedgerReader, reading
from billaged.ledger.store import LedgerStore
from billaged.model.errors import StorageError
from billaged.model.records import JournalEntry
from billaged.reports.errors import ProofFailed
from billaged.reports.verify import Progress

# Commit when this many rows wait, so that memory stays bounded.
_FLUSH_ROWS: Final = 200_000
_SHOWN_PER_TABLE: Final = 5


class Difference(NamedTuple):
    """A row that is not the same. ``ledger`` and ``journal`` have the columns that differ; None where it is missing."""

    table: str
    key: dict[str, Any]
    ledger: dict[str, Any] | None
    journal: dict[str, Any] | None


class TableComparison(NamedTuple):
    """``first`` has the first few of ``differing`` rows."""

    table: str
    rows: int
    differing: int
    first: list[Difference]


class Comparison(NamedTuple):
    """The journal's rows up to ``position`` against the ledger that says it covers them."""

    position: int
    tables: list[TableComparison]

    @property
    def equal(self) -> bool:
        return not any(table.differing for table in self.tables)


def replay(data_dir: Path, into: Path | None, progress: Progress) -> Comparison:
    """Fold the journal into a fresh ledger and compare. Changes neither; a daemon may run.

    ``into`` keeps the fresh ledger there (it must not exist yet); None keeps it nowhere.

    Raises:
        ProofFailed: the journal lacks rows, or is another one than the ledger's.
        StorageError: journal, segments or ledger cannot be read, or the fresh one cannot be made.
    """
    with closing(JournalFile(data_dir / FILE_NAME)) as journal, _place(into) as path:
        store = LedgerStore(database.open_for_writing(path), journal.journal_id)
        with closing(store):
            refold = _Refold(journal, Segments(data_dir / SEGMENTS), store, progress)
            # The long way first, without holding the ledger's moment; what came meanwhile after.
            with reading(data_dir / database.FILE_NAME) as ledger:
                _check_same(journal, ledger)
                reached = ledger.position.sequence
            refold.go_to(reached)
            with reading(data_dir / database.FILE_NAME) as ledger:
                _check_same(journal, ledger)
                refold.go_to(ledger.position.sequence)
                with reading(path) as fresh:
                    return Comparison(ledger.position.sequence, compare(ledger, fresh))


def compare(ledger: LedgerReader, fresh: LedgerReader) -> list[TableComparison]:
    """Every derived table of two ledgers, side by side in the order of its key."""
    return [_compare(table, ledger.dump_rows(table), fresh.dump_rows(table)) for table in DUMPED]


class _Refold:
    """The fold, from the beginning, a stretch at a time: the daemon's own engine, without its threads."""

    def __init__(self, journal: JournalFile, segments: Segments, store: LedgerStore, progress: Progress) -> None:
        self._journal = journal
        self._segments = segments
        self._store = store
        self._progress = progress
        self._engine = Engine(store.checkpoint())

    def go_to(self, position: int) -> None:
        for rows in self._rows(self._engine.position, position):
            entries = [_entry(row, before) for before, row in enumerate(rows, self._engine.position)]
            if unknown := self._engine.unknown_vms(entries):
                self._engine.restore(self._store.newest_sessions(unknown))
            # What summaries it gives were given out when it was news.
            self._engine.fold(entries, replayed=True)
            if self._engine.waiting_rows() > _FLUSH_ROWS:
                self._flush()
            self._progress(self._engine.position, position)
        self._flush()
        if self._engine.position != position:
            raise ProofFailed(f"the journal ends at row {self._engine.position}, but the ledger has folded {position}.")

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


def _entry(row: JournalRow, before: int) -> JournalEntry:
    if row.sequence != before + 1:
        raise ProofFailed(f"journal row {before + 1} is missing. 'billaged journal verify' says more.")
    return entry_of(row)


def _check_same(journal: JournalFile, ledger: LedgerReader) -> None:
    if ledger.position.journal_id != journal.journal_id:
        raise ProofFailed(
            f"the ledger was folded from journal {ledger.position.journal_id}, but the one beside it is"
            f" {journal.journal_id}."
        )


@contextmanager
def _place(into: Path | None) -> Iterator[Path]:
    if into is None:
        with TemporaryDirectory(prefix="billaged-replay-") as folder:
            yield Path(folder) / database.FILE_NAME
        return
    try:
        # Nobody else's to read, and never over something that is there.
        os.close(os.open(into, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StorageError(f"--into {into} cannot be made: {error.strerror}.", "Name a new file.") from error
    try:
        yield into
    except BaseException:
        # Half a ledger looks like a whole one.
        for ending in ("", "-wal", "-shm"):
            into.with_name(into.name + ending).unlink(missing_ok=True)
        raise


def _compare(table: str, ledger: Iterable[tuple[Any, ...]], fresh: Iterable[tuple[Any, ...]]) -> TableComparison:
    _, names, key_length = DUMPED[table]
    rows, differing, first = 0, 0, []
    for mine, anew in _side_by_side(iter(ledger), iter(fresh), key_length):
        rows += mine is not None
        if mine != anew:
            differing += 1
            if differing <= _SHOWN_PER_TABLE:
                first.append(_difference(table, names, key_length, mine, anew))
    return TableComparison(table, rows, differing, first)


def _side_by_side(
    left: Iterator[tuple[Any, ...]], right: Iterator[tuple[Any, ...]], key_length: int
) -> Iterator[tuple[tuple[Any, ...] | None, tuple[Any, ...] | None]]:
    """Rows of the same key together; None where one side lacks it. Both rise by key."""
    mine, anew = next(left, None), next(right, None)
    while mine is not None or anew is not None:
        if anew is None or (mine is not None and mine[:key_length] < anew[:key_length]):
            yield mine, None
            mine = next(left, None)
        elif mine is None or anew[:key_length] < mine[:key_length]:
            yield None, anew
            anew = next(right, None)
        else:
            yield mine, anew
            mine, anew = next(left, None), next(right, None)


def _difference(
    table: str,
    names: Sequence[str],
    key_length: int,
    mine: tuple[Any, ...] | None,
    anew: tuple[Any, ...] | None,
) -> Difference:
    one = mine if mine is not None else anew or ()
    key = dict(zip(names[:key_length], one, strict=False))
    if mine is None or anew is None:
        named = dict(list(zip(names, one, strict=True))[key_length:])
        return Difference(table, key, None if mine is None else named, None if anew is None else named)
    changed = [index for index, pair in enumerate(zip(mine, anew, strict=True)) if pair[0] != pair[1]]
    return Difference(
        table, key, {names[index]: mine[index] for index in changed}, {names[index]: anew[index] for index in changed}
    )
