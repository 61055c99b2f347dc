"""A copy of a SQLite file that a daemon writes to: of one moment, a little at a time, synced before it has its name."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from billaged.intake.read_only import read_only_uri
from billaged.model.errors import StorageError

# Told how many bytes of how many are done.
BytesDone = Callable[[int, int], None]

UNFINISHED_SUFFIX: Final = ".partial"

_OWN_PREFIX: Final = ".billaged-backup-"
_JUST_NOW_SECONDS: Final = 60.0
_STEP_PAGES: Final = 256
# Write and read version in the header (sqlite.org/fileformat2.html#file_format_version_numbers): 1 is without WAL.
_VERSIONS_AT: Final = 18
_WITHOUT_WAL: Final = b"\x01\x01"
# Beside a database of that name it would take the copy for its own.
_OF_SQLITE: Final = ("-wal", "-shm", "-journal")
# A large sync at once would hold up the daemon's own.
SYNC_BYTES: Final = 8 * 2**20
_ASKED_TO_END: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Pace:
    """How fast bytes are moved: at most so many a second, and never more than half of the time.

    So a slow disk, too, belongs to the daemon for at least as long as to the copy.
    """

    def __init__(self, bytes_per_second: int) -> None:
        """0 is as fast as it goes."""
        self._bytes_per_second = bytes_per_second
        self._last = time.monotonic()

    def moved(self, count: int) -> None:
        """So many bytes were moved since the last call: wait until the next ones may be."""
        if self._bytes_per_second:
            took_seconds = time.monotonic() - self._last
            time.sleep(max(took_seconds, count / self._bytes_per_second - took_seconds))
        self._last = time.monotonic()


FULL_SPEED: Final = 0
"""For ``Pace``."""


def copy_database(source: Path, target: Path, pace: Pace, told: BytesDone) -> None:
    """Copy a database into a new file that needs no other file beside it.

    Whoever writes to the source goes on; its log grows until the copy is done.

    Raises:
        StorageError: there is a target already, or one of them cannot be used.
    """
    if target.name.endswith(_OF_SQLITE):
        raise StorageError(f"{target} has a name of SQLite's own files.", "Choose another name.")
    try:
        with new_file(target) as (descriptor, unfinished):
            _copy(source, unfinished, descriptor, pace, told)
            # As a daemon's it would ask for a log beside it, also where nothing can be written; this
            # is what "PRAGMA journal_mode=DELETE" does, without files that a kill would leave.
            os.pwrite(descriptor, _WITHOUT_WAL, _VERSIONS_AT)
    except (OSError, sqlite3.Error) as error:
        raise StorageError(f"{source} cannot be copied to {target}: {error}.") from error


@contextmanager
def new_file(target: Path) -> Iterator[tuple[int, Path]]:
    """A file to write, by its descriptor and its path; it gets the name it is for once the body has ended well.

    Raises:
        OSError: it cannot be made, or has been made meanwhile.
        StorageError: there is one of that name, or another process is making it.
    """
    _refuse_existing(target)
    unfinished = target.with_name(target.name + UNFINISHED_SUFFIX)
    descriptor, is_ours = -1, False
    try:
        with undisturbed():
            descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            _take(descriptor, unfinished)
            is_ours = True
        yield descriptor, unfinished
        os.fsync(descriptor)
        _refuse_existing(target)
        unfinished.rename(target)
    except BaseException:
        if is_ours:
            unfinished.unlink(missing_ok=True)
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    sync_folder(target.parent)


@contextmanager
def own_folder(within: Path) -> Iterator[Path]:
    """A folder for as long as the body takes; those that others were killed in are removed.

    Raises:
        OSError: it cannot be made.
    """
    for other in within.glob(f"{_OWN_PREFIX}*"):
        _remove_abandoned_folder(other)
    folder, descriptor = None, -1
    try:
        with undisturbed():
            folder = TemporaryDirectory(prefix=_OWN_PREFIX, dir=within)
            descriptor = os.open(folder.name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield Path(folder.name)
    finally:
        if folder is not None:
            folder.cleanup()
        if descriptor >= 0:
            os.close(descriptor)


def _remove_abandoned_folder(folder: Path) -> None:
    """Of this user, locked by nobody; one that was made just now may not be locked yet."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        # Somebody else's, or gone by now: no reason not to make our own.
        return
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or time.time() - status.st_mtime < _JUST_NOW_SECONDS:
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Whoever asks the process to end is heard after the body: what it makes is then known to those who clean up."""
    if threading.current_thread() is not threading.main_thread():
        # No signal is handled here.
        yield
        return
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in _ASKED_TO_END}
    handled = {number: handler for number, handler in before.items() if callable(handler)}
    for number in handled:
        signal.signal(number, lambda number, _frame: asked.append(number))
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
        for heard in asked:
            signal.raise_signal(heard)


def remove_abandoned(unfinished: Path) -> None:
    """Remove what a process has left that was killed; what another one is at stays.

    Raises:
        OSError: it cannot be opened, or removed.
    """
    descriptor = os.open(unfinished, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        unfinished.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make names in it durable.

    Raises:
        OSError: it cannot be.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise StorageError(f"there is a {target} already.", "Choose another name, or move it away.")


def _take(descriptor: int, unfinished: Path) -> None:
    """What a process left that was killed is begun anew; what another one is at is left alone."""
    by_another = StorageError(f"{unfinished} is being written by another process.", "Let it finish.")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        named = unfinished.lstat()
    except OSError as error:
        raise by_another from error
    opened = os.fstat(descriptor)
    # Locked just after another one has finished, it may have its real name by now.
    if not os.path.samestat(opened, named):
        raise by_another
    if opened.st_uid != os.geteuid() or opened.st_nlink != 1:
        # Its owner would read what is written there.
        raise StorageError(f"{unfinished} is there already, and somebody else's.", "Remove it, or choose another name.")
    os.fchmod(descriptor, 0o600)
    os.ftruncate(descriptor, 0)


def _copy(source: Path, unfinished: Path, descriptor: int, pace: Pace, told: BytesDone) -> None:
    with (
        closing(sqlite3.connect(read_only_uri(source), uri=True, timeout=30)) as reader,
        closing(sqlite3.connect(unfinished, isolation_level=None)) as writer,
    ):
        reader.isolation_level = None
        # Held until the end: each step else begins anew where the source was written meanwhile.
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        page_bytes = reader.execute("PRAGMA page_size").fetchone()[0]
        # A file that is not finished is thrown away, so it needs neither a log nor syncs of SQLite's.
        writer.execute("PRAGMA journal_mode=OFF")
        writer.execute("PRAGMA synchronous=OFF")
        pages_done = 0

        def step(_status: int, remaining: int, total: int) -> None:
            nonlocal pages_done
            moved, pages_done = total - remaining - pages_done, total - remaining
            if pages_done * page_bytes % SYNC_BYTES < moved * page_bytes:
                sync_early(descriptor)
            told(pages_done * page_bytes, total * page_bytes)
            pace.moved(moved * page_bytes)

        reader.backup(writer, pages=_STEP_PAGES, progress=step)


def sync_early(descriptor: int) -> None:
    """Put what was written so far onto the disk, every ``SYNC_BYTES`` or so.

    Raises:
        OSError: it cannot be.
    """
    os.fdatasync(descriptor)
    # The daemon's pages are worth more to the machine than the copy's.
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
