"""The chores: what has to be done again and again while the daemon serves. Part of the composition root."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from billaged.aggregator.worker import Aggregator
from billaged.directory import DataDirectory
from billaged.intake.journal import Journal, JournalRow, entry_of
from billaged.intake.service import Intake
from billaged.model.records import JournalEntry, Tick
from billaged.model.time import MINUTE_NANOS, NANOS, Clock
from billaged.telemetry.systemd import ServiceManager

_log: Final = logging.getLogger("billaged.daemon")
# What operators keep elsewhere.
_audit: Final = logging.getLogger("billaged.audit")

_TICK_MAX_NANOS: Final = MINUTE_NANOS
_LOOK_AT_DISK_SECONDS: Final = 1.0
_HEAD_SECONDS: Final = 3600.0
# Looks in the time that the watchdog waits: a stall of half of it is always survived.
_LOOKS_PER_WATCHDOG: Final = 4
# What a start replays at once: few rows at first and after some that took long, twice as many after each that did not.
_PIECE_ROWS_MIN: Final = 64
_PIECE_SECONDS: Final = 1.0
# So much of a replay is lost at most, and one piece, where the service manager ends a start that takes long.
_REPLAY_FLUSH_SECONDS: Final = 10.0


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


async def feed_watchdog(manager: ServiceManager, intake: Intake, aggregator: Aggregator) -> None:
    """Say that the daemon is alive while nothing waits to be folded, or what waits gets on.

    A record is done when it is folded, and it was committed before: so neither the journal
    writer nor the fold can hang unseen, and nothing is said while the event loop hangs.
    """
    if manager.watchdog_seconds is None:
        return
    pause_seconds = manager.watchdog_seconds / _LOOKS_PER_WATCHDOG
    stalled_looks = 0
    manager.alive()
    while True:
        done = aggregator.progress
        await asyncio.sleep(pause_seconds)
        if not intake.in_flight or aggregator.progress != done:
            manager.alive()
            if stalled_looks > 1:
                _log.warning("what waited gets on again")
            stalled_looks = 0
            continue
        stalled_looks += 1
        # At the first look it may have come a moment ago.
        if stalled_looks == 2:
            _log.error(
                "%d requests wait, and none was folded for %.1f s; after %.1f s the service manager restarts billaged",
                intake.in_flight,
                stalled_looks * pause_seconds,
                manager.watchdog_seconds,
            )


def tell_head(journal: Journal) -> None:
    """Log the chain's head: who keeps the log elsewhere can prove later what the journal was."""
    head = journal.head
    _audit.info(
        "journal head",
        extra={"journal_id": journal.journal_id, "sequence": head.sequence, "chain": head.chain.hex()},
    )


def tell_begun_anew(journal: Journal) -> None:
    """Log that there was a file before, which was lost: the operator's command has no log that is kept elsewhere."""
    for story in journal.begun_anew:
        _audit.warning(
            "the journal was begun anew",
            extra={"journal_id": journal.journal_id, **story._asdict(), "rows_unbilled": story.rows_unbilled},
        )


async def tell_heads(journal: Journal) -> None:
    """Once an hour, and at the beginning: a start tells which journal it has found."""
    tell_begun_anew(journal)
    while True:
        tell_head(journal)
        await asyncio.sleep(_HEAD_SECONDS)


def replay_pieces(
    groups: Iterable[Sequence[JournalRow]], aggregator: Aggregator, clock: Clock, tell: Callable[[int], None]
) -> Iterator[list[JournalEntry]]:
    """The journal's groups, for ``aggregator.replay``: in pieces, and what is folded is committed in between.

    A row may take a second. A start that is ended before it is done must not begin again where it began, or it would
    do so for ever. ``tell`` hears before each piece up to which row it goes.
    """
    most = _PIECE_ROWS_MIN
    flushed_ns = clock.monotonic_nanos()
    for rows in groups:
        at = 0
        while at < len(rows):
            piece = rows[at : at + most]
            at += len(piece)
            began_ns = clock.monotonic_nanos()
            tell(piece[-1].sequence)
            yield [entry_of(row) for row in piece]
            now_ns = clock.monotonic_nanos()
            most = 2 * most if now_ns - began_ns < _PIECE_SECONDS * NANOS else _PIECE_ROWS_MIN
            if now_ns - flushed_ns >= _REPLAY_FLUSH_SECONDS * NANOS:
                aggregator.flush()
                flushed_ns = clock.monotonic_nanos()
