"""The chores: what has to be done again and again while the daemon serves. Part of the composition root."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from billaged.aggregator.worker import Aggregator
from billaged.directory import DataDirectory
from billaged.intake.journal import Journal
from billaged.intake.segments import FOLDER_NAME, Segments
from billaged.intake.service import Intake
from billaged.intake.writer import JournalWriter
from billaged.model.records import Tick
from billaged.model.time import MINUTE_NANOS, NANOS, Clock
from billaged.settings import Storage

_log: Final = logging.getLogger("billaged.daemon")

_TICK_MAX_NANOS: Final = MINUTE_NANOS
_LOOK_AT_DISK_SECONDS: Final = 1.0
_ARCHIVE_SECONDS: Final = 60.0


async def tick(intake: Intake, clock: Clock, interval_ns: int) -> None:
    """Journal the passing of time. A tick that comes late stands for one tick length all the same."""
    per_interval = -(-interval_ns // _TICK_MAX_NANOS)
    length_ns = interval_ns // per_interval
    count = 0
    # The interval that a stop left open goes on from here.
    intake.submit_own(Tick(clock.wall_nanos(), 0, closes_interval=False))
    due = clock.monotonic_nanos()
    while True:
        due = max(due + length_ns, clock.monotonic_nanos())
        await asyncio.sleep((due - clock.monotonic_nanos()) / NANOS)
        if not intake.taking:
            continue
        count += 1
        intake.submit_own(Tick(clock.wall_nanos(), length_ns, closes_interval=count % per_interval == 0))


async def watch_disk(intake: Intake, directory: DataDirectory, needed_bytes: int) -> None:
    """Refuse before the disk is full, so that what was taken can still be written."""
    full = False
    while True:
        free = directory.free_bytes()
        if (free < needed_bytes) != full:
            full = free < needed_bytes
            reason = f"the disk of the data directory has only {free >> 20} MiB left"
            intake.disk_is_full(reason if full else None)
            if full:
                _log.error("refusing usage: %s, less than UNKEY_BILLAGED_MIN_FREE_BYTES", reason)
            else:
                _log.warning("taking usage again: the disk has room")
        await asyncio.sleep(_LOOK_AT_DISK_SECONDS)


class Archive:
    """Moves what is old and in the ledger out of the journal, into segments."""

    def __init__(
        self,
        journal: Journal,
        writer: JournalWriter,
        aggregator: Aggregator,
        directory: DataDirectory,
        clock: Clock,
        settings: Storage,
    ) -> None:
        self._journal = journal
        self._writer = writer
        self._aggregator = aggregator
        self._segments = Segments(directory.path / FOLDER_NAME)
        self._clock = clock
        self._settings = settings
        self._archived = journal.pruned  # what the segments have of the journal

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_ARCHIVE_SECONDS)
            try:
                await self._move()
            except Exception:  # noqa: BLE001 - whatever it was, it can wait
                # Nothing is lost while it stays in the journal: no reason to stop taking usage.
                _log.exception("the journal could not be archived; trying again in %g s", _ARCHIVE_SECONDS)

    async def _move(self) -> None:
        now_ns, keep = self._clock.wall_nanos(), self._settings.archive_retention_ns
        before_ns = now_ns - self._settings.journal_retention_ns
        in_ledger = self._aggregator.status().ledger_position
        while last := await asyncio.to_thread(
            self._segments.archive, self._journal, self._archived, in_ledger, before_ns, keep=bool(keep)
        ):
            self._archived = self._writer.prunable_through = last
        if keep:
            await asyncio.to_thread(self._segments.remove_older, (now_ns - keep) / NANOS)
