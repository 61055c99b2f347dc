"""The engine's way to what the ledger knows: asked without the lock, given to the engine under it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from billaged.aggregator.changes import SESSION_COLUMNS, LedgerWriter
from billaged.aggregator.engine import Engine
from billaged.aggregator.summary import SummaryBatch
from billaged.aggregator.timelines import load_timelines
from billaged.model.records import JournalEntry

_VM_ID = SESSION_COLUMNS.index("vm_id")


def feed(
    engine: Engine,
    ledger: LedgerWriter,
    entries: Sequence[JournalEntry],
    *,
    replayed: bool = False,
    lock: AbstractContextManager[Any] | None = None,
) -> list[SummaryBatch]:
    """Fold entries in journal order, with whatever the ledger holds that they need; the summaries that became due.

    Raises:
        StorageError: the ledger cannot be read.
    """
    held = nullcontext() if lock is None else lock
    if unknown := engine.unknown_vms(entries):
        rows = ledger.newest_sessions(unknown)
        stopped = ledger.vms_with_kept_instants(unknown.difference([row[_VM_ID] for row in rows]))
        with held:
            engine.restore(rows)
            engine.expect_timelines(stopped)
    summaries: list[SummaryBatch] = []
    while True:
        with held:
            folded = engine.fold(entries, replayed=replayed)
        summaries += folded.summaries
        if not folded.wanted:
            return summaries
        loaded = load_timelines(ledger, folded.wanted)
        with held:
            engine.restore_timelines(loaded)


def take_up(engine: Engine, ledger: LedgerWriter) -> None:
    """What a fold that goes on needs of the ledger from the beginning: who is heard, and what runs.

    Raises:
        StorageError: the ledger cannot be read, or was folded by other rules.
    """
    engine.silence.load(ledger)
    for rows in ledger.running_sessions():
        engine.restore(rows)
