"""Room on the data directory's disk: a start waits for it. Part of the composition root."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from billaged.directory import DataDirectory
from billaged.ledger.full_disk import is_full
from billaged.model.errors import StorageError
from billaged.telemetry.systemd import ServiceManager

_log: Final = logging.getLogger("billaged.daemon")

# Opening journal and ledger, folding what the ledger lacks and closing them again needs no more: SQLite keeps
# its logs at some MiB each. A start with less would fail half-way, each time anew.
_START_BYTES_MAX: Final = 16 << 20
_LOOK_SECONDS: Final = 0.5
_SAY_AGAIN_SECONDS: Final = 60.0
_FREE_SPACE: Final = "Free space on its disk and start again; nothing is damaged."


async def room_to_start(directory: DataDirectory, min_free_bytes: int, service_manager: ServiceManager) -> bool:
    """Wait until the disk has room to start; false where a signal ended the wait.

    ``min_free_bytes`` is what requests need; where that is less than a start's, it is enough for a start,
    and 0 is no check at all.
    """
    needed_bytes = min(min_free_bytes, _START_BYTES_MAX)
    if directory.free_bytes() >= needed_bytes:
        return True
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        return await _wait(directory, needed_bytes, service_manager, stop)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _wait(
    directory: DataDirectory, needed_bytes: int, service_manager: ServiceManager, stop: asyncio.Event
) -> bool:
    loop = asyncio.get_running_loop()
    say_at = loop.time()
    while (free_bytes := directory.free_bytes()) < needed_bytes:
        said = f"the disk of the data directory has only {free_bytes >> 20} MiB left"
        if loop.time() >= say_at:
            say_at = loop.time() + _SAY_AGAIN_SECONDS
            _log.error("waiting to start: %s, a start needs %d MiB", said, needed_bytes >> 20)
        service_manager.waiting(f"waiting to start: {said}", _SAY_AGAIN_SECONDS)
        try:
            await asyncio.wait_for(stop.wait(), _LOOK_SECONDS)
        except TimeoutError:
            continue
        return False
    _log.warning("starting: the disk has room")
    return True


@contextmanager
def full_disk_named() -> Iterator[None]:
    """Run the body. Where the disk had no room it says so: nothing needs to be restored then. Also a decorator.

    Raises:
        StorageError: as the body does.
    """
    try:
        yield
    except StorageError as error:
        if not is_full(error):
            raise
        raise StorageError(str(error).removesuffix(error.hint).rstrip(), _FREE_SPACE) from error
