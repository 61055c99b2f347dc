"""The chores: what has to be done again and again while the daemon serves. Part of the composition root."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from billaged.aggregator.worker import Aggregator
from billaged.directory import DataDirectory
from billaged.intake.journal import Journal
from billaged.intake.service import Intake
from billaged.model.records import Tick
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
        done = aggregator.folded_entries
        await asyncio.sleep(pause_seconds)
        if not intake.in_flight or aggregator.folded_entries != done:
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


async def tell_heads(journal: Journal) -> None:
    """Once an hour, and at the beginning: a start tells which journal it has found."""
    while True:
        tell_head(journal)
        await asyncio.sleep(_HEAD_SECONDS)
