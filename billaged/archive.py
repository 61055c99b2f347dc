"""What is old leaves the journal, at cuts: positions with a snapshot of the ledger. Part of the composition root.

So a bill can be recomputed from any cut on, however long ago the journal began.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Final

from billaged.aggregator.worker import Aggregator
from billaged.directory import DataDirectory
from billaged.intake.journal import Journal
from billaged.intake.segments import Segments
from billaged.intake.writer import JournalWriter
from billaged.ledger.cuts import FOLDER_NAME as SNAPSHOTS
from billaged.ledger.cuts import Cut, Label, cuts_in, make_cut
from billaged.ledger.database import FILE_NAME as LEDGER
from billaged.model.errors import StorageError
from billaged.model.time import DAY_NANOS, NANOS, Clock
from billaged.settings import Storage

_log: Final = logging.getLogger("billaged.daemon")

_LOOK_SECONDS: Final = 60.0
# A cut is made once a day, or once a retention where that is shorter; but not while
# taking snapshots would be more than a tenth of what the daemon does.
_CUT_NANOS: Final = DAY_NANOS
_REST: Final = 10
# The thread never waits longer at once.
_WAIT_SECONDS_MAX: Final = 1.0


class Archive:
    """Makes the cuts, and moves what is old out of the journal at them, into segments."""

    def __init__(
        self,
        journal: Journal,
        writer: JournalWriter,
        aggregator: Aggregator,
        directory: DataDirectory,
        segments: Segments,
        clock: Clock,
        settings: Storage,
    ) -> None:
        self._journal = journal
        self._writer = writer
        self._aggregator = aggregator
        self._directory = directory
        self._clock = clock
        self._settings = settings
        self._segments = segments
        self._snapshots = directory.path / SNAPSHOTS
        self._archived = journal.pruned  # what the segments have of the journal
        self._rest_until_ns = 0
        # Whose damage was told.
        self._damaged: set[Cut] = set()
        # The thread that looks has to end with the daemon.
        self._ended = threading.Event()

    async def run(self) -> None:
        try:
            while True:
                await asyncio.sleep(_LOOK_SECONDS)
                await asyncio.to_thread(self.look)
        finally:
            self._ended.set()

    def look(self) -> None:
        """Do what is due. Blocks; for a thread of its own."""
        for part in (self._make_cut_if_due, self._move):
            try:
                part()
            except Exception:  # noqa: BLE001 - whatever it was, it can wait
                # Nothing is lost while it stays in the journal: no reason to stop taking usage.
                if not self._ended.is_set():
                    _log.exception("the journal could not be archived; trying again in %g s", _LOOK_SECONDS)

    # --- cuts --------------------------------------------------------------------

    def _make_cut_if_due(self) -> None:
        began_ns = self._clock.monotonic_nanos()
        if began_ns < self._rest_until_ns or not self._is_cut_due():
            return
        try:
            meanwhile = _Meanwhile(self._directory, self._settings.min_free_bytes, self._ended)
            made_ns = self._clock.wall_nanos()
            cut = make_cut(self._directory.path / LEDGER, self._snapshots, made_ns, meanwhile)
        finally:
            took_ns = self._clock.monotonic_nanos() - began_ns
            self._rest_until_ns = began_ns + (1 + _REST) * took_ns
        _log.info(
            "snapshot of the ledger taken",
            extra={"position": cut.position, "bytes": cut.path.stat().st_size, "seconds": round(took_ns / NANOS, 3)},
        )

    def _is_cut_due(self) -> bool:
        position = self._aggregator.status().ledger_position
        cuts = self._own_cuts(position)
        if not cuts:
            return position > 0
        if position <= cuts[-1].position:
            return False
        made_ns = self._made_ns(cuts[-1])
        # One that seems to come from the future was stamped by a wrong clock.
        age_ns = -1 if made_ns is None else self._clock.wall_nanos() - made_ns
        return not 0 <= age_ns < min(_CUT_NANOS, self._settings.journal_retention_ns)

    def _own_cuts(self, position: int) -> list[Cut]:
        """Those up to the ledger's position that are of this journal: it may have been put back from a backup."""
        return [cut for cut in cuts_in(self._snapshots) if cut.position <= position and self._is_own(cut)]

    def _is_own(self, cut: Cut) -> bool:
        if (label := self._label(cut)) is None:
            return False
        return cut.position < self._journal.pruned or label.chain == self._journal.chain_at(cut.position)

    def _made_ns(self, cut: Cut) -> int | None:
        return None if (label := self._label(cut)) is None else label.made_ns

    def _label(self, cut: Cut) -> Label | None:
        try:
            return cut.label()
        except StorageError as error:
            # Whether it is any good is for a replay to say; no row leaves at it.
            if cut not in self._damaged:
                self._damaged.add(cut)
                _log.warning("%s", error)
            return None

    # --- what leaves -------------------------------------------------------------

    def _move(self) -> None:
        now_ns, keep = self._clock.wall_nanos(), self._settings.archive_retention_ns
        before_ns = now_ns - self._settings.journal_retention_ns
        if cut := self._next_cut(before_ns):
            while self._archived < cut.position and not self._ended.is_set():
                last = self._segments.archive(self._journal, self._archived, cut.position, before_ns, keep=bool(keep))
                if not last:
                    break
                self._archived = last
            if self._archived == cut.position:
                self._writer.prunable_through = cut.position
        if keep:
            self._segments.remove_older((now_ns - keep) / NANOS)
        self._remove_cuts_without_rows(keep=bool(keep))
        self._thin_out_cuts()

    def _next_cut(self, before_ns: int) -> Cut | None:
        """The newest cut that was made before a time, where that is further than what has left already."""
        in_ledger = self._aggregator.status().ledger_position
        for cut in reversed(self._own_cuts(in_ledger)):
            if cut.position <= self._archived:
                return None
            made_ns = self._made_ns(cut)
            if made_ns is not None and made_ns < before_ns:
                return cut
        return None

    def _remove_cuts_without_rows(self, *, keep: bool) -> None:
        """Those whose next row is nowhere any more. Where segments should be but are not, they may come back."""
        first = self._segments.first()
        if keep and first is not None:
            useful_from = min(first - 1, self._journal.pruned)
        elif keep:
            return
        else:
            useful_from = self._segments.reach(self._journal.pruned)
        for cut in cuts_in(self._snapshots):
            if cut.position < useful_from:
                cut.path.unlink()

    def _thin_out_cuts(self) -> None:
        """Of those that rows have left at, one a day is enough, and the newest."""
        kept_ns: int | None = None
        # What a replay begins at: a later one could not prove the rows in between, which are there.
        reach = self._segments.reach(self._journal.pruned)
        for cut in [cut for cut in cuts_in(self._snapshots) if cut.position <= self._journal.pruned][:-1]:
            made_ns = self._made_ns(cut)
            if made_ns is None:
                continue
            if kept_ns is not None and cut.position != reach and 0 <= made_ns - kept_ns < _CUT_NANOS:
                cut.path.unlink()
            else:
                kept_ns = made_ns


class _Meanwhile:
    """While a snapshot is taken: half of the time is the others', room stays on the disk, and a stop ends it."""

    def __init__(self, directory: DataDirectory, needed_bytes: int, ended: threading.Event) -> None:
        self._directory = directory
        self._needed_bytes = needed_bytes
        self._ended = ended
        self._last = time.monotonic()

    def __call__(self) -> None:
        if self._directory.free_bytes() < self._needed_bytes:
            raise StorageError(
                "a snapshot of the ledger would leave too little room on the disk.",
                "Free space; until then the journal keeps what it has.",
            )
        if self._ended.wait(min(time.monotonic() - self._last, _WAIT_SECONDS_MAX)):
            raise StorageError("the daemon stops.")
        self._last = time.monotonic()
