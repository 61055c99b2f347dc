"""Ledgers in files, and snapshots of them: what a hostile journal gives, at any of its rows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from auditor.convert import to_entries
from auditor.events import Event
from test_ledger_bill import evict_ended, flush, taken_up

from billaged.aggregator.feeding import feed
from billaged.ledger.database import open_for_writing
from billaged.ledger.dump import DUMPED
from billaged.ledger.reader import reading
from billaged.ledger.snapshot import take_snapshot
from billaged.ledger.store import LedgerStore
from billaged.model.records import JournalEntry
from billaged.reports.comparison import TableComparison, compare

JOURNAL_ID = "journal"


@cache
def _empty_ledger() -> Path:
    """Migrating a file takes longer than folding most journals."""
    path = Path(mkdtemp(prefix="billaged-test-")) / "ledger.db"
    open_for_writing(path).dispose()
    return path


def new_ledger(path: Path) -> Path:
    shutil.copyfile(_empty_ledger(), path)
    return path


def nothing() -> None:
    """What the others do while a snapshot is taken."""


def fold_on(ledger: Path, entries: Sequence[JournalEntry], group: int = 50) -> None:
    """Take the ledger up where it stands, as a daemon that starts, and fold what comes after."""
    with closing(LedgerStore(open_for_writing(ledger), JOURNAL_ID)) as store:
        engine = taken_up(store)
        begun = engine.position
        rest = [entry for entry in entries if entry.sequence > begun]
        for at in range(0, len(rest), group):
            feed(engine, store, rest[at : at + group])
            flush(engine, store)
            evict_ended(engine)


class Cutting:
    """A ledger folded to the end of a journal, with snapshots at some of its rows."""

    def __init__(self, folder: Path, events: Sequence[Event], cuts: Sequence[int]) -> None:
        self.folder = folder
        self.entries = to_entries(list(events))
        self.ledger = new_ledger(folder / "ledger.db")
        self.snapshots: dict[int, Path] = {}
        for cut in sorted({*cuts, len(self.entries)}):
            fold_on(self.ledger, self.entries[:cut])
            if cut in cuts:
                self.snapshots[cut] = folder / f"snapshot-{cut}.db"
                take_snapshot(self.ledger, self.snapshots[cut], folder / f"scratch-{cut}.db", nothing)

    def compared(self, cut: int) -> list[TableComparison]:
        """The ledger against what folding on from a snapshot gives."""
        fresh = self.folder / f"fresh-{cut}.db"
        shutil.copyfile(self.snapshots[cut], fresh)
        fold_on(fresh, self.entries, group=7)
        with reading(self.ledger) as ledger, reading(fresh) as anew, reading(self.snapshots[cut]) as before:
            return compare(ledger, anew, before)


def differing(tables: Sequence[TableComparison]) -> list[object]:
    return [table for table in tables if table.differing]


def rows_of(ledger: Path) -> Iterator[tuple[str, int]]:
    """How many rows each table has."""
    with reading(ledger) as reader:
        for table in DUMPED:
            yield table, sum(1 for _ in reader.dump_rows(table))
